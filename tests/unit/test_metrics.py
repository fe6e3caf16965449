"""Metrics: the table, the recorder without Ray and with a fake one, and everything outside that names a metric."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmvp_ray.metrics import METRICS, Recorder, reject_reasons
from tests.unit.kustomize import render

REPOSITORY = Path(__file__).resolve().parents[2]
MONITORING = REPOSITORY / "k8s" / "overlays" / "monitoring"
DASHBOARD = MONITORING / "dashboard" / "mmvp-ray.json"
DOCUMENT = REPOSITORY / "docs" / "operations.md"

# Seen on the endpoint of a node of Ray 2.60, or for GPUs, which that node had none of, in ray/dashboard/modules/reporter/reporter_agent.py.
RAYS_OWN = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_gram_available",
    "ray_node_cpu_utilization",
    "ray_node_cpu_count",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_disk_usage",
    "ray_node_network_receive_speed",
    "ray_object_store_used_memory",
    "ray_cluster_active_nodes",
    "ray_tasks",
}


class FakeRay(types.ModuleType):
    def __init__(self) -> None:
        super().__init__("ray")
        self.is_up = False

    def is_initialized(self) -> bool:
        return self.is_up


class Instrument:
    made: dict[str, Instrument]
    fails = False

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        if self.fails:
            raise RuntimeError("no agent\nhere")
        assert name not in self.made, "an instrument is made once"
        assert description
        self.made[name] = self
        self.tag_keys = tag_keys
        self.values: dict[tuple[str, ...], float] = {}

    def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == set(self.tag_keys)
        return tuple(tags[key] for key in self.tag_keys)


class Counter(Instrument):
    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        self.values[self._key(tags)] = self.values.get(self._key(tags), 0.0) + value


class Gauge(Instrument):
    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values[self._key(tags)] = value


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    module = types.ModuleType("ray.util.metrics")
    Instrument.made = {}
    module.Counter, module.Gauge = Counter, Gauge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util", types.ModuleType("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.metrics", module)
    return fake


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    recorder.run, recorder.stage = "r", "join"
    return recorder


def test_counts_from_before_ray_are_kept_until_it_runs(ray: FakeRay, recorder: Recorder) -> None:
    recorder.add("stage_units", 3, unit="rows")
    recorder.add("stage_units", 4, unit="rows")
    recorder.set("tasks_waiting", 9)
    assert Instrument.made == {}
    ray.is_up = True
    recorder.add("tasks_done", 1)
    assert Instrument.made["mmvp_ray_stage_units"].values == {("r", "join", "rows"): 7.0}
    assert Instrument.made["mmvp_ray_tasks_done"].values == {("r", "join"): 1.0}
    assert "mmvp_ray_tasks_waiting" not in Instrument.made, "a gauge of the past is of no use"
    recorder.set("tasks_waiting", 5)
    recorder.add("stage_units", 5, unit="rows")
    assert Instrument.made["mmvp_ray_tasks_waiting"].values == {("r", "join"): 5.0}
    assert Instrument.made["mmvp_ray_stage_units"].values == {("r", "join", "rows"): 12.0}


def test_zero_is_not_counted(ray: FakeRay, recorder: Recorder) -> None:
    ray.is_up = True
    recorder.add("tasks_done", 0)
    assert Instrument.made == {}


def test_without_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    recorder.add("tasks_done", 1)
    recorder.set("tasks_waiting", 1)
    assert "ray" not in sys.modules, "metrics alone do not import Ray"


def test_a_failure_is_said_once_and_harms_nothing(
    ray: FakeRay, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Instrument, "fails", True)
    ray.is_up = True
    with caplog.at_level(logging.WARNING):
        recorder.add("tasks_done", 1)
        recorder.set("tasks_waiting", 1)
    assert [record.getMessage() for record in caplog.records] == ["no metrics from now on: no agent here"]


def test_a_wrong_label_is_a_defect(recorder: Recorder) -> None:
    with pytest.raises(AssertionError, match="has the labels"):
        recorder.add("tasks_done", 1, kind="x")


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"num_rejected": 3, "num_nonfinite": 1, "reject_reasons": '{"empty": 3, "nonfinite_vector": 1}'},
         {"empty": 3, "nonfinite_vector": 1}),
        ({"num_rejected": 3, "num_nonfinite": 0, "reject_reasons": '{"empty": 1}'}, {"empty": 1, "unspecified": 2}),
        ({"num_rejected": 2, "num_nonfinite": 1}, {"unspecified": 3}),
        ({}, {}),
    ],
)  # fmt: skip
def test_reasons_add_up(summary: dict[str, Any], expected: dict[str, int]) -> None:
    assert reject_reasons(summary) == expected


def test_names_follow_prometheus() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name and re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
        assert not name.endswith("_total"), "Ray adds it"
        assert metric.labels[0] == "run" and metric.help and not metric.help.endswith(".")
        assert re.fullmatch(r"ray_mmvp_ray_\w+", metric.exported_name)
        assert metric.exported_name.endswith("_total") == (metric.kind == "counter")
        for unit in ("second", "byte"):
            assert (unit in name) <= (f"{unit}s" in name), "units are in the plural"


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> list[str]:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_asks_for_metrics_that_exist_with_labels_that_they_have() -> None:
    known = {metric.exported_name: metric for metric in METRICS.values()}
    asked: set[str] = set()
    for query in queries():
        names = set(re.findall(r"\bray_\w+", query)) - {"ray_io_cluster"}
        assert names, query
        assert names <= known.keys() | RAYS_OWN, f"unknown: {names - known.keys() - RAYS_OWN}"
        asked |= names
        for name in names & known.keys():
            for block in re.findall(name + r"\{([^}]*)\}", query):
                labels = set(re.findall(r"(\w+)\s*(?:=~|=|!=|!~)", block))
                assert labels <= {*known[name].labels, "ray_io_cluster"}, (name, labels)
        for by in re.findall(r"\bby \(([^)]*)\)", query):
            labels = {label.strip() for label in by.split(",")}
            ours = [set(known[name].labels) for name in names & known.keys()]
            assert all(labels <= have for have in ours), (query, labels)
        assert query.count("(") == query.count(")")
        # A counter is read as a rate or as a difference; alone it only ever grows.
        for name in names & known.keys():
            if known[name].kind == "counter":
                assert re.search(r"(rate|increase)\(" + name, query) or re.search(r"sum by \(.*\) \(" + name, query), (
                    query
                )
    assert asked >= known.keys(), f"not shown: {known.keys() - asked}"


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    assert board["uid"] and board["title"] and board["schemaVersion"] >= 36 and board.get("id") is None
    variables = {one["name"] for one in board["templating"]["list"]}
    assert variables == {"datasource", "cluster", "run"}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["fieldConfig"]["defaults"]["unit"] and panel["title"] and panel["description"]
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == variables


def test_grafana_finds_the_dashboard() -> None:
    (made,) = render(DASHBOARD.parent)
    assert made["kind"] == "ConfigMap" and made["metadata"]["namespace"] == "monitoring"
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(made["data"]["mmvp-ray.json"]) == dashboard()


def test_kubectl_renders_the_same() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")
    theirs = subprocess.run(["kubectl", "kustomize", str(DASHBOARD.parent)], capture_output=True, text=True, check=True)
    assert render(DASHBOARD.parent) == list(yaml.load_all(theirs.stdout, Loader=yaml.CSafeLoader))


def test_the_pods_have_the_ports_that_are_scraped() -> None:
    monitors = [one for one in render(MONITORING) if one["kind"] == "PodMonitor"]
    (cluster,) = [one for one in render(REPOSITORY / "k8s" / "base") if one["kind"] == "RayCluster"]
    head = cluster["spec"]["headGroupSpec"]["template"]
    workers = [group["template"] for group in cluster["spec"]["workerGroupSpecs"]]
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"]
        pods = [pod for pod in (head, *workers) if wanted.items() <= pod["metadata"]["labels"].items()]
        assert pods
        for pod in pods:
            ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert endpoint["port"] in ports
            # The driver runs on the head, so its metrics are there; KubeRay starts Ray with --metrics-export-port 8080.
            assert ports["metrics"] == 8080


def test_the_table_in_the_documents_is_the_table_in_the_code() -> None:
    rows = re.findall(
        r"^\| `(ray_mmvp_ray_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    expected = [
        (metric.exported_name, metric.kind, ", ".join(metric.labels), metric.help) for metric in METRICS.values()
    ]
    assert rows == expected


def test_the_documents_name_rays_metrics_that_exist() -> None:
    named = set(re.findall(r"`(ray_(?!mmvp)\w+)", DOCUMENT.read_text())) - {"ray_io_cluster"}
    assert named and named <= RAYS_OWN
