"""Stages: lines in a log, events in JSON, silence; what long ones say meanwhile; what they count."""

from __future__ import annotations

import io
import json
import re
import time

import pytest

from mmvp_ray.logs import JsonLines
from mmvp_ray.metrics import Recorder
from mmvp_ray.pipeline.progress import Progress

SUMMARY = {
    "num_read": 10,
    "num_rejected": 3,
    "num_decoded": 7,
    "num_distinct": 6,
    "num_embedded": 12,
    "num_nonfinite": 0,
    "num_bytes": 5000,
    "num_written_bytes": 700,
    "read_seconds": 0.5,
    "decode_seconds": 0.25,
    "embed_seconds": 2.0,
    "piece": "a-000000",
    "reject_reasons": json.dumps({"corrupt": 1, "empty": 2}),
    "encoders": json.dumps({"clip-1": [6, 1.5], "dino-2": [6, 0.5]}),
}


class Recorded(Recorder):
    """Keeps what would be given to Ray."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        key = (name, *self._labels(name, labels).values())
        self.values[key] = self.values.get(key, 0.0) + value

    def set(self, name: str, value: float, **labels: str) -> None:
        self.values[(name, *self._labels(name, labels).values())] = value


def events(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def wait_for(text: str, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 60
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, f"{text!r} did not come"
        time.sleep(0.005)


def test_lines_of_a_log() -> None:
    stream = io.StringIO()
    progress = Progress(stream=stream)
    with progress.stage("embed", total=4096, unit="images") as stage:
        stage.advance(4000)
    with progress.stage("join", total=None, unit="pairs"):
        pass
    progress.note("a note")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "embed: about 4,096 images ..."
    assert re.fullmatch(r"embed: 4,000 images in \d+\.\d s, [\d,.]+ images/s", lines[1])
    assert lines[2] == "join: ..."
    assert re.fullmatch(r"join: 0 pairs in \d+\.\d s", lines[3])
    assert lines[4:] == ["a note"]
    assert [stage.name for stage in progress.stages] == ["embed", "join"]


def test_a_long_stage_says_how_far_it_is() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, report_seconds=0.01).stage("embed", total=100, unit="images") as stage:
        wait_for("embed: 0 of about 100 images in ", stream)
        stage.advance(50)
        wait_for("embed: 50 of about 100 images in ", stream)
    lines = stream.getvalue().splitlines()
    nothing = next(line for line in lines if line.startswith("embed: 0 of"))
    assert re.fullmatch(r"embed: 0 of about 100 images in \d+ s", nothing)
    half = next(line for line in lines if line.startswith("embed: 50 of"))
    assert re.fullmatch(r"embed: 50 of about 100 images in \d+ s, [\d,.]+ images/s, about \d+ (s|min) left", half)
    assert lines[-1].startswith("embed: 50 images in ")
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines, "a stage that has ended says no more"


def test_events() -> None:
    stream = io.StringIO()
    progress = Progress(stream=JsonLines(stream), report_seconds=0.01, metrics=Recorded())
    progress.name_run("photos")
    with progress.stage("embed", total=20, unit="images") as stage:
        stage.add_piece(SUMMARY, num_pieces=2)
        # The first report may have come before the piece.
        wait_for('"count": 10,', stream)
        stage.note = "done well"
    progress.note("a note")
    found = events(stream)
    assert found[0]["event"] == "stage_begin" and found[0]["total"] == 20
    assert {entry["run"] for entry in found} == {"photos"}
    meanwhile = next(entry for entry in found if entry["event"] == "stage_progress" and entry["count"])
    assert meanwhile["count"] == 10 and meanwhile["rate"] > 0
    assert meanwhile["seconds_left"] == pytest.approx(meanwhile["seconds"], rel=0.5, abs=0.01)
    end = next(entry for entry in found if entry["event"] == "stage_end")
    assert (end["stage"], end["unit"], end["count"], end["note"]) == ("embed", "images", 10, "done well")
    assert end["counts"]["num_written_bytes"] == 700 and end["counts"]["pieces"] == 1
    assert end["counts"]["encode_images clip-1"] == 6 and end["counts"]["encode_seconds dino-2"] == 0.5
    assert found[-1]["event"] == "note" and found[-1]["message"] == "a note"


def test_a_stage_that_fails_is_an_event_and_keeps_its_time() -> None:
    stream, text = io.StringIO(), io.StringIO()
    progress = Progress(stream=JsonLines(stream))
    with pytest.raises(ValueError, match="no"), progress.stage("join", total=None, unit="pairs"):
        raise ValueError("no")
    assert [entry["event"] for entry in events(stream)] == ["stage_begin", "stage_failed"]
    assert progress.stages[0].seconds > 0
    with pytest.raises(ValueError, match="no"), Progress(stream=text).stage("join", total=None, unit="pairs"):
        raise ValueError("no")
    assert text.getvalue() == "join: ...\n"


def test_silence() -> None:
    progress = Progress(stream=None, report_seconds=0.01)
    with progress.stage("embed", total=1, unit="images") as stage:
        stage.advance(1)
    progress.note("nothing")
    assert progress.stages[0].count == 1


def test_a_terminal_has_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream=stream, report_seconds=0.01)
    with progress.stage("embed", total=10, unit="images") as stage:
        stage.advance(10)
    progress.note("a note")
    assert "embed" in stream.getvalue() and "10.0/10.0" in stream.getvalue() and "a note" in stream.getvalue()
    assert "about" not in stream.getvalue()


def test_what_the_metrics_get() -> None:
    recorded = Recorded()
    progress = Progress(stream=None, metrics=recorded)
    progress.name_run("r")
    with progress.stage("embed", total=20, unit="images") as stage:
        assert recorded.stage == "embed"
        assert recorded.values["stage_running", "r", "embed"] == 1
        stage.add_piece(SUMMARY, num_pieces=3)
        stage.add_piece(SUMMARY, num_pieces=3)
    with progress.stage("mine", total=None, unit="near pairs") as stage:
        stage.found_pairs(near="c", far="d", num_near=9, num_blind=4)
    assert recorded.stage == ""
    seconds = {key[2]: recorded.values.pop(key) for key in list(recorded.values) if key[0] == "stage_seconds"}
    assert set(seconds) == {"embed", "mine"} and min(seconds.values()) > 0
    assert recorded.values == {
        ("images_read", "r"): 20,
        ("images_embedded", "r"): 12,
        ("vectors_written", "r"): 24,
        ("images_rejected", "r", "corrupt"): 2,
        ("images_rejected", "r", "empty"): 4,
        ("read_bytes", "r"): 10_000,
        ("work_seconds", "r", "read"): 1.0,
        ("work_seconds", "r", "decode"): 0.5,
        ("work_seconds", "r", "encode"): 4.0,
        ("pieces_done", "r"): 2,
        ("pieces_left", "r"): 1,
        ("stage_units", "r", "embed", "images"): 20,
        ("stage_running", "r", "embed"): 0,
        ("stage_running", "r", "mine"): 0,
        ("near_pairs_found", "r", "c", "d"): 9,
        ("blind_pairs_found", "r", "c", "d"): 4,
    }
