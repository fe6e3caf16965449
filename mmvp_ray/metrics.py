"""What a run reports to Prometheus: the table of metrics, and the one recorder that hands values to Ray's endpoint while Ray runs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)

PREFIX = "mmvp_ray_"
RAY_PREFIX = "ray_"
"""Ray puts it before the name of every metric of an application."""
UNSPECIFIED = "unspecified"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: Without our prefix, with its unit.
        kind: A counter grows while the driver runs; a gauge goes up and down.
        labels: Names of its labels.
        help: What it tells, for people.
    """

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    help: str

    @property
    def exported_name(self) -> str:
        """The name on the endpoint: Ray's prefix before ours, and for a counter the suffix _total."""
        return RAY_PREFIX + PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=name, kind="counter", labels=("run", *labels), help=help)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", labels=("run", *labels), help=help)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _counter("images_read", "Images read from shards, rejected ones included"),
        _counter("images_embedded", "Distinct images of a piece that went through the encoders"),
        _counter("images_rejected", "Images that could not be used, by reason", "reason"),
        _counter("vectors_written", "Vectors committed to the store, one for each image and encoder"),
        _counter("read_bytes", "Bytes of encoded images read from shards"),
        _counter("pieces_done", "Pieces committed with all their tables"),
        _gauge("pieces_left", "Pieces still to embed, an estimate for shards that nobody has read to the end"),
        _counter("work_seconds", "Seconds of work in all workers: reading, decoding, encoding", "kind"),
        _counter("stage_units", "What a stage has done so far, in its unit: images, pairs and so on", "stage", "unit"),
        _counter("stage_seconds", "How long a stage took, added when it ends", "stage"),
        _gauge("stage_running", "1 while a stage runs, else 0", "stage"),
        _gauge("tasks_waiting", "Tasks of a stage that wait for a worker: the depth of the queue", "stage"),
        _gauge("tasks_running", "Tasks of a stage that have a worker, as far as the cluster has slots", "stage"),
        _counter("tasks_done", "Tasks of a stage that came to an end", "stage"),
        _counter("near_pairs_found", "Pairs that are near by the rule of one near and one far encoder", "near", "far"),
        _counter("blind_pairs_found", "Those of them that are far: the blind pairs", "near", "far"),
    )
}
"""Every metric by its name without prefixes. What a run found is counted too: Ray drops a gauge 20 s after its driver has ended, but keeps
a counter as long as the node lives, so that a slow scrape does not miss it."""

_OF_PIECES: dict[str, tuple[str, dict[str, str]]] = {
    "num_read": ("images_read", {}),
    "num_distinct": ("images_embedded", {}),
    "num_embedded": ("vectors_written", {}),
    "num_bytes": ("read_bytes", {}),
    "read_seconds": ("work_seconds", {"kind": "read"}),
    "decode_seconds": ("work_seconds", {"kind": "decode"}),
    "embed_seconds": ("work_seconds", {"kind": "encode"}),
}


class Recorder:
    """Hands values to Ray when a session runs in this process, and keeps them until then; without Ray nothing is reported.

    A metric never makes a run fail: whatever goes wrong is logged once and the rest of the process does without metrics.
    """

    def __init__(self) -> None:
        self.run = ""
        self.stage = ""
        self._instruments: dict[str, Any] = {}
        self._counted: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._is_broken = False

    def add(self, name: str, value: float, **labels: str) -> None:
        """Let a counter grow; a value that is not above zero changes nothing."""
        if value > 0:
            key = (name, tuple(sorted(self._labels(name, labels).items())))
            self._counted[key] = self._counted.get(key, 0.0) + value
            self._pass_on()

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge, if Ray runs."""
        self._record(name, float(value), self._labels(name, labels))

    def add_piece(self, summary: Mapping[str, Any]) -> None:
        """Count an embedded piece, from the numbers that the embedding pass gives for it."""
        for key, (name, labels) in _OF_PIECES.items():
            self.add(name, float(summary.get(key, 0)), **labels)
        reasons = reject_reasons(summary)
        for reason, count in reasons.items():
            self.add("images_rejected", count, reason=reason)
        self.add("pieces_done", 1)

    def _labels(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        known = METRICS[name].labels
        given = {"run": self.run, **({"stage": self.stage} if "stage" in known else {}), **labels}
        assert set(given) == set(known), f"{name} has the labels {known}"
        return given

    def _pass_on(self) -> None:
        if not self._is_ready():
            return
        counted, self._counted = self._counted, {}
        for (name, labels), value in counted.items():
            self._record(name, value, dict(labels))

    def _record(self, name: str, value: float, labels: dict[str, str]) -> None:
        if not self._is_ready():
            return
        try:
            instrument = self._instruments.get(name) or self._make(METRICS[name])
            self._instruments[name] = instrument
            if METRICS[name].kind == "counter":
                instrument.inc(value, tags=labels)
            else:
                instrument.set(value, tags=labels)
        except Exception as error:
            self._is_broken = True
            log.warning("no metrics from now on: %s", " ".join(str(error).split()))

    def _make(self, metric: Metric) -> Any:
        from ray.util.metrics import Counter, Gauge

        make = Counter if metric.kind == "counter" else Gauge
        return make(PREFIX + metric.name, description=metric.help, tag_keys=metric.labels)

    def _is_ready(self) -> bool:
        ray = sys.modules.get("ray")
        if ray is None or self._is_broken:
            return False
        return bool(ray.is_initialized())


def reject_reasons(summary: Mapping[str, Any]) -> dict[str, int]:
    """How many images of an embedded piece were rejected for each reason, those that an encoder gave no vector for included."""
    found: dict[str, int] = json.loads(summary.get("reject_reasons") or "{}")
    rest = int(summary.get("num_rejected", 0)) + int(summary.get("num_nonfinite", 0)) - sum(found.values())
    return found if rest <= 0 else {**found, UNSPECIFIED: rest}


RECORDER = Recorder()
"""The recorder of this process: a driver is one."""
