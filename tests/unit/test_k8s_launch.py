"""The CronJob's launcher against a small stand-in for the Kubernetes API on loopback: exactly one run, whatever restarts."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
    "launch", REPOSITORY / "k8s" / "overlays" / "schedule-cronjob" / "launch.py"
)
assert _spec and _spec.loader
launch = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(launch)

JOB = {"template": "mmvp-ray-template", "job_name": "mmvp-ray-remine-29384750", "job_uid": "1f0c"}


class Cluster:
    """RayJobs by name, and what the next requests are to be answered with."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {
            "mmvp-ray-template": {
                "apiVersion": "ray.io/v1",
                "kind": "RayJob",
                "metadata": {"name": "mmvp-ray-template", "uid": "77", "resourceVersion": "5", "labels": {"a": "b"}},
                "spec": {"suspend": True, "entrypoint": "python x.py", "backoffLimit": 4},
                "status": {"jobDeploymentStatus": "Suspended"},
            }
        }
        self.statuses: list[Any] = []
        self.asked: list[tuple[str, str, str | None]] = []


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Cluster, Any]]:
    cluster = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[-1]
            cluster.asked.append(("GET", self.path, self.headers["Authorization"]))
            if name not in cluster.jobs:
                self.answer(404, {})
                return
            if name != "mmvp-ray-template" and cluster.statuses:
                status = cluster.statuses.pop(0)
                if isinstance(status, int):
                    self.answer(status, {})
                    return
                cluster.jobs[name]["status"] = status
            self.answer(200, cluster.jobs[name])

        def do_POST(self) -> None:
            cluster.asked.append(("POST", self.path, self.headers["Authorization"]))
            made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if made["metadata"]["name"] in cluster.jobs:
                self.answer(409, {})
                return
            cluster.jobs[made["metadata"]["name"]] = made
            self.answer(201, made)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Looked at often: shutdown waits for the next look.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    (tmp_path / "token").write_text("secret\n")
    yield cluster, launch.Api(f"http://127.0.0.1:{server.server_port}", "mining", tmp_path)
    server.shutdown()
    server.server_close()
    thread.join()


def follow(api: Any) -> int:
    return int(launch.follow(api, JOB["job_name"], poll_seconds=0.001))


def test_the_run_is_the_template_woken_and_belongs_to_the_job(served: tuple[Cluster, Any]) -> None:
    cluster, api = served
    launch.launch(api, **JOB)
    made = cluster.jobs[JOB["job_name"]]
    assert made == {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": JOB["job_name"],
            "labels": {"a": "b"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": JOB["job_name"], "uid": "1f0c"}],
        },
        "spec": {"suspend": False, "entrypoint": "python x.py", "backoffLimit": 4},
    }
    assert cluster.jobs["mmvp-ray-template"]["spec"]["suspend"] is True
    assert {path for _, path, _ in cluster.asked} == {
        "/apis/ray.io/v1/namespaces/mining/rayjobs",
        "/apis/ray.io/v1/namespaces/mining/rayjobs/mmvp-ray-template",
    }
    assert {authorization for _, _, authorization in cluster.asked} == {"Bearer secret"}


def test_a_second_pod_of_the_job_finds_the_run(served: tuple[Cluster, Any]) -> None:
    cluster, api = served
    launch.launch(api, **JOB)
    before = dict(cluster.jobs)
    launch.launch(api, **JOB)
    assert cluster.jobs == before


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([None, {}, {"jobDeploymentStatus": "Running"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}], 0),
        ([{"jobDeploymentStatus": "Retrying"}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}], 0),
        ([503, 500, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}], 0),
        ([{"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "no"}], 3),
        ([{"jobDeploymentStatus": "ValidationFailed"}], 3),
        ([{"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}], 3),
    ],
    ids=str,
)  # fmt: skip
def test_the_exit_code_says_how_the_run_ended(served: tuple[Cluster, Any], statuses: list[Any], code: int) -> None:
    cluster, api = served
    launch.launch(api, **JOB)
    cluster.statuses = list(statuses)
    assert follow(api) == code
    assert cluster.statuses == []


def test_a_run_that_was_removed_is_not_waited_for(served: tuple[Cluster, Any]) -> None:
    _, api = served
    with pytest.raises(HTTPError):
        follow(api)


def test_an_api_that_stays_away_ends_the_launcher(served: tuple[Cluster, Any]) -> None:
    cluster, api = served
    launch.launch(api, **JOB)
    cluster.statuses = [503] * launch.MAX_FAILED_POLLS
    with pytest.raises(HTTPError):
        follow(api)


def test_a_template_that_is_not_there_is_an_error(served: tuple[Cluster, Any]) -> None:
    cluster, api = served
    del cluster.jobs["mmvp-ray-template"]
    with pytest.raises(HTTPError):
        launch.launch(api, **JOB)
    assert cluster.jobs == {}
