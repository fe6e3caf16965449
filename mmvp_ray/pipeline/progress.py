"""What a user sees while a run works: a bar for each stage on a terminal, one line for each stage in a log; and its timings."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from tqdm import tqdm


@dataclass(slots=True)
class Stage:
    """One stage while it runs; `count` of `unit` done so far."""

    name: str
    unit: str
    count: int = 0
    seconds: float = 0.0
    note: str = ""
    _bar: Any = None

    def advance(self, by: int) -> None:
        """Count `by` more."""
        self.count += by
        if self._bar is not None:
            self._bar.update(by)


@dataclass(slots=True)
class Progress:
    """Shows stages on a stream (standard error unless given; None shows nothing) and keeps how long they took."""

    stream: TextIO | None = field(default_factory=lambda: sys.stderr)
    stages: list[Stage] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, *, total: int | None, unit: str) -> Iterator[Stage]:
        """Run a stage: its bar or its two lines, and its time."""
        stage = Stage(name, unit)
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
        elif self.stream is not None:
            expected = "" if total is None else f" about {total:,} {unit}"
            print(f"{name}:{expected} ...", file=self.stream, flush=True)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds = time.perf_counter() - started
            self.stages.append(stage)
            if stage._bar is not None:
                stage._bar.close()
                stage._bar = None
        if not terminal and self.stream is not None:
            rate = f", {stage.count / stage.seconds:,.1f} {unit}/s" if stage.count and stage.seconds > 0 else ""
            print(
                f"{name}: {stage.count:,} {unit} in {stage.seconds:.1f} s{rate}",
                file=self.stream,
                flush=True,
            )

    def note(self, text: str) -> None:
        """Show one line."""
        if self.stream is None:
            return
        if self.stream.isatty():
            tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)
