"""`python -m kvtrove` is `kvtrove`."""

import sys


def main() -> None:
    """Ctrl-C is exit code 130 while the command is still imported, too."""
    try:
        from kvtrove.cli.main import app
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="kvtrove")


if __name__ == "__main__":
    main()
