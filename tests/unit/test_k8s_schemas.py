"""Every rendered manifest against the definitions of its kind, where an unknown key is an error.

Ray's kinds: KubeRay's custom resource definitions, in kuberay_crds of the folder of real data or in $KUBERAY_CRDS. Native kinds: the
schemas in the package kubernetes-validate. PodMonitor: the few fields that are used, written down here.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.kustomize import render

K8S = Path(__file__).resolve().parents[2] / "k8s"
FOLDERS = [K8S / "base", *sorted((K8S / "overlays").iterdir())]
KUBERNETES_VERSIONS = ("1.31", "1.37")
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
STRING = {"type": "string"}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD_MONITOR = {
    "apiVersion": STRING,
    "kind": STRING,
    "metadata": {"name": STRING, "namespace": STRING, "labels": STRINGS},
    "spec": {
        "jobLabel": STRING,
        "selector": {"matchLabels": STRINGS},
        "podMetricsEndpoints": [
            {
                "port": STRING,
                "relabelings": [{"action": STRING, "sourceLabels": [STRING], "targetLabel": STRING}],
            }
        ],
    },
}


@functools.cache
def rendered(folder: Path) -> list[dict[str, Any]]:
    return render(folder)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural OpenAPI schema as JSON Schema in which an object takes only the keys it names."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    result.pop("nullable", None)
    # Go's formats (int32, int64) and CEL rules are not checked.
    result.pop("format", None)
    if "properties" in schema:
        result["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = strict(schema["items"])
    for key in ("anyOf", "allOf", "oneOf"):
        if key in schema:
            result[key] = [strict(one) for one in schema[key]]
    return result


@functools.cache
def ray_validator(path: Path) -> jsonschema.Draft202012Validator:
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # The definition leaves metadata to Kubernetes.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": STRING, "namespace": STRING, "labels": STRINGS, "annotations": STRINGS},
        "required": ["name"],
        "additionalProperties": False,
    }
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="session")
def crds(request: pytest.FixtureRequest) -> Path:
    folder = Path(os.environ.get("KUBERAY_CRDS") or request.getfixturevalue("real_data") / "kuberay_crds")
    if not folder.is_dir():
        pytest.skip(f"no KubeRay definitions at {folder} (set KUBERAY_CRDS)")
    return folder


def check_ray(manifest: dict[str, Any], crds: Path) -> None:
    validator = ray_validator(crds / f"ray.io_{RAY_KINDS[manifest['kind']]}.yaml")
    errors = [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in validator.iter_errors(manifest)]
    assert errors == []


def check_native(manifest: dict[str, Any]) -> None:
    import kubernetes_validate

    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(kinds: Collection[str], *, others: bool = False) -> list[Any]:
    """What the overlays render of some kinds (or of all others), each manifest once."""
    found: list[tuple[str, dict[str, Any]]] = []
    for folder in FOLDERS:
        for one in rendered(folder):
            if (one["kind"] in kinds) != others and all(one != seen for _, seen in found):
                found.append((folder.name, one))
    return [pytest.param(one, id=f"{name}-{one['kind']}-{one['metadata']['name']}") for name, one in found]


@pytest.mark.parametrize("manifest", of_kind(RAY_KINDS))
def test_ray_kinds(manifest: dict[str, Any], crds: Path) -> None:
    check_ray(manifest, crds)


@pytest.mark.parametrize("manifest", of_kind([*RAY_KINDS, "PodMonitor"], others=True))
def test_native_kinds(manifest: dict[str, Any]) -> None:
    check_native(manifest)


@pytest.mark.parametrize("manifest", of_kind(["PodMonitor"]))
def test_pod_monitors(manifest: dict[str, Any]) -> None:
    check_shape(manifest, POD_MONITOR)


def test_every_ray_kind_is_there() -> None:
    assert {one["kind"] for folder in FOLDERS for one in rendered(folder)} > set(RAY_KINDS)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        (("spec", "submisionMode"), "K8sJobMode"),
        (("spec", "backoffLimit"), "4"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "tolerations"), {}),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"), []),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "submitterPodTemplate", "spec", "securityContext", "runAsNonroot"), True),
        (("metadata", "label"), {}),
    ],
    ids=str,
)
def test_a_typo_in_a_rayjob_is_caught(crds: Path, pointer: tuple[Any, ...], value: Any) -> None:
    (job,) = [copy.deepcopy(one) for one in rendered(K8S / "overlays" / "mine") if one["kind"] == "RayJob"]
    check_ray(job, crds)
    put(job, pointer, value)
    with pytest.raises(AssertionError, match=str(pointer[-1])):
        check_ray(job, crds)


@pytest.mark.parametrize(
    ("kind", "pointer", "value"),
    [
        ("CronJob", ("spec", "concurrencyPolice"), "Forbid"),
        ("CronJob", ("spec", "jobTemplate", "spec", "backoffLimit"), "many"),
        ("NetworkPolicy", ("spec", "podSelectors"), {}),
        ("Role", ("rules", 0, "verb"), ["get"]),
    ],
    ids=str,
)
def test_a_typo_in_a_native_kind_is_caught(kind: str, pointer: tuple[Any, ...], value: Any) -> None:
    import jsonschema.exceptions

    manifest = next(
        copy.deepcopy(one) for one in rendered(K8S / "overlays" / "schedule-cronjob") if one["kind"] == kind
    )
    put(manifest, pointer, value)
    with pytest.raises(jsonschema.exceptions.ValidationError):
        check_native(manifest)


def test_a_typo_in_a_pod_monitor_is_caught() -> None:
    monitor = copy.deepcopy(rendered(K8S / "overlays" / "monitoring")[0])
    monitor["spec"]["podMetricsEndpoint"] = []
    with pytest.raises(AssertionError):
        check_shape(monitor, POD_MONITOR)


def check_shape(value: Any, shape: Any, where: str = "") -> None:
    if shape in (STRING, STRINGS):
        jsonschema.validate(value, shape)
    elif isinstance(shape, list):
        assert isinstance(value, list) and value, where
        for one in value:
            check_shape(one, shape[0], where)
    else:
        assert set(value) <= set(shape), f"{where}: {set(value) - set(shape)}"
        for key, one in value.items():
            check_shape(one, shape[key], f"{where}/{key}")


def put(document: Any, pointer: tuple[Any, ...], value: Any) -> None:
    for key in pointer[:-1]:
        document = document[key]
    document[pointer[-1]] = value
