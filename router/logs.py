"""How the processes of the gateway log: lines of text, or of JSON for whoever collects logs.

A line of JSON has `time` (Unix, seconds), `level`, `logger`, `message`, with several processes `process`, and for an
error with a traceback `exception`. Lines about requests have their fields besides (`gateway.access_log`).
"""

from __future__ import annotations

import logging
import sys

import msgspec

from router.config import ServerOptions

CHATTY = ("httpx", "uvicorn")  # a line for every health check, and for every step of the start
FIELDS = "fields"
"""The attribute of a record that holds its own fields, a dict (`extra={FIELDS: ...}`)."""


def set_up(options: ServerOptions, process: str = "") -> None:
    """Send this process's log to stderr in the form that the options name. process: the name of one of several."""
    name = process and f"{process} "
    text = logging.Formatter(f"%(asctime)s %(levelname).1s {name}%(name)s: %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process) if options.log_format == "json" else text)
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


class JsonFormatter(logging.Formatter):
    """Makes one line of JSON of a record. It uses msgspec: python-json-logger took 90 us for the line of a request,
    which is much for the data path; this takes a third of it."""

    def __init__(self, process: str = "") -> None:
        super().__init__()
        self._process = {"process": process} if process else {}

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        line |= self._process
        line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= getattr(record, FIELDS, {})
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # half a character, from the name of a model
            return msgspec.json.encode(_whole(line)).decode()


def _whole(line: dict[str, object]) -> dict[str, object]:
    return {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in line.items()}
