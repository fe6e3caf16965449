"""What a user sees while a run works: a bar for each stage on a terminal, lines in a log, events in JSON; and its timings and counts."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm

from mmvp_ray.logs import JsonLines
from mmvp_ray.metrics import RECORDER, Recorder

REPORT_SECONDS = 30.0
"""A stage that takes longer says how far it is, once in so many seconds."""


@dataclass(slots=True)
class Stage:
    """One stage while it runs.

    Attributes:
        name: For people, and the label of its metrics.
        unit: What it counts.
        count: Done so far.
        seconds: How long it took, once it has ended.
        note: More about it, for people.
        total: How much there is to do; an estimate. None when nobody knows.
        counts: What else was counted, by name; seconds of work among them.
    """

    name: str
    unit: str
    count: int = 0
    seconds: float = 0.0
    note: str = ""
    total: int | None = None
    counts: dict[str, float] = field(default_factory=dict)
    _bar: Any = None
    _metrics: Recorder = RECORDER

    def advance(self, by: int) -> None:
        """Count `by` more."""
        self.count += by
        self._metrics.add("stage_units", by, stage=self.name, unit=self.unit)
        if self._bar is not None:
            self._bar.update(by)

    def report(self, **counts: float) -> None:
        """Keep further counts of this stage, each added to what there is by its name."""
        for name, value in counts.items():
            self.counts[name] = self.counts.get(name, 0) + value

    def found_pairs(self, *, near: str, far: str, num_near: int, num_blind: int) -> None:
        """Tell how many pairs of two encoders, named, are near, and how many of them blind."""
        self.report(near_pairs=num_near, blind_pairs=num_blind)
        self._metrics.add("near_pairs_found", num_near, near=near, far=far)
        self._metrics.add("blind_pairs_found", num_blind, near=near, far=far)

    def add_piece(self, summary: Mapping[str, Any], *, num_pieces: int) -> None:
        """Count an embedded piece by the numbers that the embedding pass gives for it.

        Args:
            summary: The numbers (embed/stages.py: EmbedActor).
            num_pieces: Pieces that the stage has to do in all, as far as known.
        """
        self.advance(int(summary["num_read"]))
        numbers = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        for slug, (num_images, seconds) in json.loads(summary.get("encoders") or "{}").items():
            numbers |= {f"encode_images {slug}": num_images, f"encode_seconds {slug}": seconds}
        self.report(pieces=1, **numbers)
        self._metrics.add_piece(summary)
        self._metrics.set("pieces_left", max(0.0, num_pieces - self.counts["pieces"]))


@dataclass(slots=True)
class Progress:
    """Shows stages on a stream (standard error unless given; None shows nothing) and keeps how long they took.

    Attributes:
        stream: Where stages are shown: bars on a terminal, events if it speaks JSON (logs.JsonLines), else lines.
        stages: The stages that have ended.
        report_seconds: How often a long stage says in a log how far it is.
        metrics: Takes the counts for Prometheus.
    """

    stream: TextIO | JsonLines | None = field(default_factory=lambda: sys.stderr)
    stages: list[Stage] = field(default_factory=list)
    report_seconds: float = REPORT_SECONDS
    metrics: Recorder = RECORDER

    def name_run(self, name: str) -> None:
        """Give the name that events and metrics carry as `run`."""
        self.metrics.run = name
        if isinstance(self.stream, JsonLines):
            self.stream.run = name

    @contextmanager
    def stage(self, name: str, *, total: int | None, unit: str) -> Iterator[Stage]:
        """Run a stage: its bar or its lines, its metrics, and its time."""
        stage = Stage(name, unit, total=total, _metrics=self.metrics)
        terminal = self.stream is not None and self.stream.isatty()
        if terminal:
            stage._bar = tqdm(
                total=total,
                desc=f"{name:<10}",
                unit=f" {unit}",
                file=self.stream,
                dynamic_ncols=True,
                unit_scale=True,
            )
        else:
            expected = "" if total is None else f" about {total:,} {unit}"
            self._say("stage_begin", f"{name}:{expected} ...", stage=name, unit=unit, total=total)
        outer, self.metrics.stage = self.metrics.stage, name
        self.metrics.set("stage_running", 1, stage=name)
        started = time.perf_counter()
        has_ended = threading.Event()
        reporter = None
        if not terminal and self.stream is not None:
            reporter = threading.Thread(target=self._report, args=(stage, started, has_ended), daemon=True)
            reporter.start()
        failed = True
        try:
            yield stage
            failed = False
        finally:
            has_ended.set()
            if reporter is not None:
                reporter.join()
            stage.seconds = time.perf_counter() - started
            self.stages.append(stage)
            self.metrics.add("stage_seconds", stage.seconds, stage=name)
            self.metrics.set("stage_running", 0, stage=name)
            self.metrics.stage = outer
            if stage._bar is not None:
                stage._bar.close()
                stage._bar = None
            if failed and isinstance(self.stream, JsonLines):
                self._end(stage, "stage_failed", f"{name}: left after {stage.count:,} {unit} and {stage.seconds:.1f} s")
        if not terminal:
            rate = f", {stage.count / stage.seconds:,.1f} {unit}/s" if stage.count and stage.seconds > 0 else ""
            self._end(stage, "stage_end", f"{name}: {stage.count:,} {unit} in {stage.seconds:.1f} s{rate}")

    def note(self, text: str) -> None:
        """Show one line."""
        if self.stream is not None and self.stream.isatty():
            tqdm.write(text, file=self.stream)
        else:
            self._say("note", text)

    def _report(self, stage: Stage, started: float, has_ended: threading.Event) -> None:
        while not has_ended.wait(self.report_seconds):
            seconds = time.perf_counter() - started
            # Once: it grows in another thread.
            count = stage.count
            rate = count / seconds
            left = None if stage.total is None or not rate else max(0.0, (stage.total - count) / rate)
            of = "" if stage.total is None else f" of about {stage.total:,}"
            message = f"{stage.name}: {count:,}{of} {stage.unit} in {seconds:.0f} s"
            if count:
                message += f", {rate:,.1f} {stage.unit}/s"
            if left is not None:
                message += f", about {_duration(left)} left"
            self._say(
                "stage_progress",
                message,
                stage=stage.name,
                unit=stage.unit,
                count=count,
                total=stage.total,
                seconds=seconds,
                rate=rate,
                seconds_left=left,
                counts=_rounded(stage.counts),
            )

    def _end(self, stage: Stage, event: str, message: str) -> None:
        self._say(
            event,
            message,
            stage=stage.name,
            unit=stage.unit,
            count=stage.count,
            total=stage.total,
            seconds=stage.seconds,
            rate=stage.count / stage.seconds if stage.seconds > 0 else None,
            counts=_rounded(stage.counts),
            note=stage.note or None,
        )

    def _say(self, event: str, message: str, **fields: Any) -> None:
        if isinstance(self.stream, JsonLines):
            self.stream.event(event, message, **fields)
        elif self.stream is not None:
            print(message, file=self.stream, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _rounded(counts: Mapping[str, float]) -> dict[str, float] | None:
    # A dict of another thread may grow while it is read.
    return {name: round(value, 3) for name, value in list(counts.items())} or None
