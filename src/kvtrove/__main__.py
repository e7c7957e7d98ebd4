"""`python -m kvtrove` is `kvtrove`."""

from kvtrove.cli.main import app

app(prog_name="kvtrove")
