"""The renderer that other tests stand on: equal to kubectl's, and loud about what it does not know."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.unit.kustomize import KustomizeError, apply_json_patch, render

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = [K8S / "base", *sorted(path for path in (K8S / "overlays").iterdir())]


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_equal_to_kubectl(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on this machine")
    theirs = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert theirs.returncode == 0, theirs.stderr

    def by_name(resources: list[dict]) -> dict:
        return {(one["kind"], one["metadata"]["name"]): one for one in resources}

    assert by_name(render(folder)) == by_name(list(yaml.load_all(theirs.stdout, Loader=yaml.CSafeLoader)))


def write(folder: Path, **fields: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(head | fields))
    return folder


@pytest.mark.parametrize(
    "fields",
    [
        {"namePrefix": "x-"},
        {"resource": ["pod.yaml"]},
        {"replacements": []},
        {"labels": [{"pairs": {"a": "b"}, "includeSelectors": True}]},
        {"images": [{"name": "a", "newName": "b", "digest": "sha256:0"}]},
        {"configMapGenerator": [{"name": "a", "literals": ["a=b"]}]},  # with a hash in its name
        {"patches": [{"path": "patch.yaml", "target": {"kind": "Pod", "labelSelector": "a=b"}}]},
        {"patches": [{"path": "patch.yaml", "target": {"kind": "Nothing"}}]},
        {"resources": ["../outside.yaml"]},
        {"resources": ["absent.yaml"]},
        {"resources": ["pod.yaml", "pod.yaml"]},
        {"resources": ["twice.yaml"]},
        {"kind": "Component"},
    ],
    ids=str,
)
def test_what_it_does_not_know_is_an_error(tmp_path: Path, fields: dict) -> None:
    folder = write(tmp_path / "layer", **fields)
    (tmp_path / "outside.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: a}}")
    (folder / "pod.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: a}}")
    (folder / "twice.yaml").write_text("{apiVersion: v1, kind: Pod, kind: Job, metadata: {name: a}}")
    (folder / "patch.yaml").write_text("[{op: add, path: /metadata/labels, value: {}}]")
    with pytest.raises(KustomizeError):
        render(folder)


def test_strategic_patch_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, resources=["pod.yaml"], patches=[{"path": "patch.yaml", "target": {"kind": "Pod"}}])
    (folder / "pod.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: a}}")
    (folder / "patch.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: a}}")
    with pytest.raises(KustomizeError, match="only JSON patches"):
        render(folder)


def test_json_patch_as_in_the_rfc() -> None:
    document = {"foo": ["bar", "baz"], "a/b": 1}
    operations = [
        {"op": "add", "path": "/foo/1", "value": "qux"},
        {"op": "add", "path": "/foo/-", "value": "end"},
        {"op": "replace", "path": "/a~1b", "value": 2},
        {"op": "copy", "from": "/foo/0", "path": "/first"},
        {"op": "move", "from": "/foo/0", "path": "/moved"},
        {"op": "remove", "path": "/foo/1"},
    ]
    expected = {"foo": ["qux", "end"], "a/b": 2, "first": "bar", "moved": "bar"}
    assert apply_json_patch(document, operations) == expected
    assert document == {"foo": ["bar", "baz"], "a/b": 1}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/absent", "value": 1},
        {"op": "remove", "path": "/foo/7"},
        {"op": "add", "path": "/absent/deep", "value": 1},
        {"op": "test", "path": "/foo", "value": 1},
        {"op": "add", "path": "/foo", "vaule": 1},
    ],
    ids=str,
)
def test_json_patch_that_misses(operation: dict) -> None:
    with pytest.raises(KustomizeError):
        apply_json_patch({"foo": ["bar"]}, [operation])
