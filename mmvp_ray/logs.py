"""Logs for machines: with --log-format json every line on standard error is one JSON object; text, for people, stays as it is."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from mmvp_ray.errors import ConfigError

FORMATS = ("text", "json")
VARIABLE = "MMVP_RAY_LOG_FORMAT"
"""Environment variable that holds a format for jobs that are not given --log-format."""
NUM_SECONDS_DIGITS = 3

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class JsonLines(io.TextIOBase):
    """A text stream that writes one JSON object a line: events as they are given, and whatever else is written to it line by line.

    So what libraries print, Ray's copies of its workers' lines included, comes out as objects too (event "line").

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lock = threading.RLock()
        self._begun = ""
        self.run = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of the stream below."""
        return self._stream.encoding or "utf-8"

    def event(self, event: str, message: str, *, level: str = "info", **fields: Any) -> None:
        """Write one event: time (UTC, ISO 8601), level, event, run, the fields that are not None, and the message for people."""
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": level,
            "event": event,
        }
        if self.run:
            entry["run"] = self.run
        entry |= {
            name: round(value, NUM_SECONDS_DIGITS) if isinstance(value, float) else value
            for name, value in fields.items()
            if value is not None
        }
        entry["message"] = message
        line = json.dumps(entry, ensure_ascii=True, default=str)
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    def write(self, text: str) -> int:
        """Take text of others; each whole line becomes an event of its own."""
        with self._lock:
            *lines, self._begun = re.split(r"[\r\n]+", self._begun + text)
            for line in lines:
                self._line(line)
        return len(text)

    def _line(self, line: str) -> None:
        plain = _COLOURS.sub("", line).strip()
        if plain:
            self.event("line", plain)

    def flush(self) -> None:
        """Pass on to the stream below; a line that has only begun stays."""
        self._stream.flush()

    def close_line(self) -> None:
        """Write the line that has only begun."""
        with self._lock:
            begun, self._begun = self._begun, ""
            self._line(begun)

    def fileno(self) -> int:
        """As of the stream below."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """False: there are no bars in JSON."""
        return False

    def writable(self) -> bool:
        """True."""
        return True


class _LogHandler(logging.Handler):
    """Records of Python's logging as events."""

    def emit(self, record: logging.LogRecord) -> None:
        lines = sys.stderr
        if not isinstance(lines, JsonLines):
            return
        trace = None
        if record.exc_info and record.exc_info[0] is not None:
            trace = "".join(traceback.format_exception(*record.exc_info))
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        lines.event("log", message, level=record.levelname.lower(), logger=record.name, traceback=trace)


def setup(wanted: str | None = None) -> None:
    """Let standard error and Python's logging speak one format from now on.

    Args:
        wanted: "text" or "json"; the environment variable MMVP_RAY_LOG_FORMAT decides unless given, and without it the format is text.

    Raises:
        ConfigError: another format.
    """
    where = "--log-format" if wanted is not None else VARIABLE
    wanted = wanted if wanted is not None else os.environ.get(VARIABLE) or "text"
    if wanted not in FORMATS:
        raise ConfigError(f"expected {' or '.join(FORMATS)}, found {wanted!r} in {where}; choose one of them")
    root = logging.getLogger()
    if wanted == "text":
        if isinstance(sys.stderr, JsonLines):
            sys.stderr.close_line()
            sys.stderr = sys.stderr._stream
            for handler in [handler for handler in root.handlers if isinstance(handler, _LogHandler)]:
                root.removeHandler(handler)
            logging.captureWarnings(False)
        return
    if isinstance(sys.stderr, JsonLines):
        return
    sys.stderr = JsonLines(sys.stderr)
    root.addHandler(_LogHandler(logging.WARNING))
    logging.captureWarnings(True)


def say(event: str, message: str, *, level: str = "info", **fields: Any) -> None:
    """One line on standard error: the message alone as text, an event in JSON."""
    if isinstance(sys.stderr, JsonLines):
        sys.stderr.event(event, message, level=level, **fields)
    else:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def is_json() -> bool:
    """True when standard error speaks JSON."""
    return isinstance(sys.stderr, JsonLines)
