"""Logs in JSON: whatever is written to standard error, by us, by logging or by anybody else, every line is one JSON object."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray import logs
from mmvp_ray.errors import ConfigError
from mmvp_ray.logs import JsonLines


def entries(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@contextlib.contextmanager
def standard_error() -> Iterator[io.StringIO]:
    """A standard error of the test's own; pytest exchanges it between a fixture and its test."""
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        try:
            yield stream
        finally:
            logs.setup("text")


def test_an_event_has_time_level_and_its_fields() -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    lines.run = "photos"
    lines.event("stage_end", "embed: done", stage="embed", count=3, seconds=1.23456, rate=None)
    (entry,) = entries(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert entry == {
        "level": "info",
        "event": "stage_end",
        "run": "photos",
        "stage": "embed",
        "count": 3,
        "seconds": 1.235,
        "message": "embed: done",
    }


@given(st.lists(st.text(), max_size=8))
def test_any_text_in_any_pieces_becomes_whole_objects(pieces: list[str]) -> None:
    stream = io.StringIO()
    lines = JsonLines(stream)
    for piece in pieces:
        assert lines.write(piece) == len(piece)
    lines.close_line()
    expected = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]+", "".join(pieces))]
    assert [entry["message"] for entry in entries(stream)] == [line for line in expected if line]


def test_print_logging_and_warnings_come_out_as_objects() -> None:
    with standard_error() as stderr:
        logs.setup("json")
        print("from a library\nsecond \x1b[31mline\x1b[0m", file=sys.stderr)
        logging.getLogger("some.library").warning("%d of %s", 3, "four")
        logging.getLogger("some.library").info("not shown")
        warnings.warn("look out", stacklevel=1)
        try:
            raise ValueError("inner")
        except ValueError:
            logging.getLogger("x").exception("it broke")
        logs.say("error", "ConfigError: no", level="error", error="ConfigError")
        found = entries(stderr)
        assert [(entry["event"], entry["level"]) for entry in found] == [
            ("line", "info"), ("line", "info"), ("log", "warning"), ("log", "warning"), ("log", "error"), ("error", "error"),
        ]  # fmt: skip
        assert found[1]["message"] == "second line"
        assert found[2]["message"] == "3 of four" and found[2]["logger"] == "some.library"
        assert "look out" in found[3]["message"]
        assert "ValueError: inner" in found[4]["traceback"]
        assert found[5]["error"] == "ConfigError"


def test_text_is_what_it_was() -> None:
    with standard_error() as stderr:
        logs.setup()
        before = list(logging.getLogger().handlers)
        logs.say("error", "ConfigError: no", level="error")
        assert stderr.getvalue() == "ConfigError: no\n"
        assert sys.stderr is stderr and logging.getLogger().handlers == before


def test_twice_is_once_and_text_takes_it_back() -> None:
    with standard_error() as stderr:
        before = list(logging.getLogger().handlers)
        logs.setup("json")
        logs.setup("json")
        logging.getLogger("x").warning("one")
        assert len(entries(stderr)) == 1
        assert logs.is_json() and not sys.stderr.isatty()
        logs.setup("text")
        assert sys.stderr is stderr and logging.getLogger().handlers == before


def test_the_environment_decides_unless_a_flag_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with standard_error():
        monkeypatch.setenv(logs.VARIABLE, "json")
        logs.setup()
        assert logs.is_json()
        logs.setup("text")
        assert not logs.is_json()
        monkeypatch.setenv(logs.VARIABLE, "xml")
        with pytest.raises(ConfigError, match="expected text or json, found 'xml' in MMVP_RAY_LOG_FORMAT"):
            logs.setup()
        with pytest.raises(ConfigError, match="found 'yaml' in --log-format"):
            logs.setup("yaml")
