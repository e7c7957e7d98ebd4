"""Structured logs: one JSON object per line, with the facts that the log call attached."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", ...facts, "error"}`; control characters are escaped, lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 info kvtrove.server.access [req-1] POST /v1/completions 200 in 0.812 s`."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", {})
        mark = f" [{facts['request_id']}]" if "request_id" in facts else ""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        # Clients choose parts of the message (paths, names): nothing in it may start a line or move a cursor.
        message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in record.getMessage())
        error = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{time} {record.levelname.lower()} {record.name}{mark} {message}{error}"


def configure(level: str, as_json: bool) -> None:
    """Send the package's log, and uvicorn's warnings, to stderr. Called once, by the command line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.getLogger("kvtrove").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
