"""What no schema knows of k8s/: names meet, versions agree, and the command is one that jobs/mine.py takes. Other tests import from here."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray import job
from mmvp_ray.config import load_yaml
from mmvp_ray.pipeline.config import MineConfig
from tests.unit.kustomize import render

REPOSITORY = Path(__file__).resolve().parents[2]
K8S = REPOSITORY / "k8s"
OVERLAYS = [K8S / "base", *sorted((K8S / "overlays").iterdir())]
WITH_RAY = [folder for folder in OVERLAYS if folder.name != "monitoring"]
IN_IMAGE = "/home/ray/mmvp-ray"

RENDERED = {folder.name: render(folder) for folder in OVERLAYS}
WORKLOADS = {"RayCluster", "RayJob", "RayCronJob", "CronJob"}

overlays = pytest.mark.parametrize("name", [folder.name for folder in WITH_RAY])


def of_kind(name: str, *kinds: str) -> list[dict[str, Any]]:
    return [one for one in RENDERED[name] if one["kind"] in kinds]


def job_specs(name: str) -> list[dict[str, Any]]:
    return [one["spec"] for one in of_kind(name, "RayJob")] + [
        one["spec"]["jobTemplate"] for one in of_kind(name, "RayCronJob")
    ]


def clusters(name: str) -> list[dict[str, Any]]:
    own = [one["spec"] for one in of_kind(name, "RayCluster")]
    return own + [spec["rayClusterSpec"] for spec in job_specs(name)]


def templates(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template of an overlay: what it is for, and the template."""
    for cluster in clusters(name):
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield "worker", group["template"]
    for spec in job_specs(name):
        yield "submitter", spec["submitterPodTemplate"]
    for cron in of_kind(name, "CronJob"):
        yield "launcher", cron["spec"]["jobTemplate"]["spec"]["template"]


def containers(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for role, template in templates(name):
        for container in template["spec"]["containers"]:
            yield role, container


def settings(name: str) -> dict[str, str]:
    (found,) = [one for one in of_kind(name, "ConfigMap") if one["metadata"]["name"] == "mmvp-ray-settings"]
    return dict(found["data"])


def argv(entrypoint: str, values: dict[str, str]) -> list[str]:
    """The words of an entrypoint after the submitter's shell has read it."""
    text = re.sub(r"\$\{(\w+)\}", lambda match: values[match.group(1)], entrypoint)
    assert "$" not in text
    return shlex.split(text)


def ray_version() -> str:
    """The one release that images are built with: the floor of what pyproject.toml takes."""
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (ray,) = [one for one in dependencies if one.startswith("ray[")]
    match = re.search(r">=(\d+\.\d+),<(\d+)\.(\d+)$", ray)
    assert match, ray
    return f"{match.group(1)}.0"


@overlays
def test_every_overlay_has_work(name: str) -> None:
    assert clusters(name)
    roles = {role for role, _ in templates(name)}
    expected = {"base": {"head", "worker"}, "schedule-cronjob": {"head", "worker", "submitter", "launcher"}}
    assert roles == expected.get(name, {"head", "worker", "submitter"})


@overlays
def test_one_image_everywhere(name: str) -> None:
    images = {container["image"] for folder in WITH_RAY for _, container in containers(folder.name)}
    assert len(images) == 1
    (image,) = {container["image"] for _, container in containers(name)}
    repository, tag = image.rsplit(":", 1)
    assert repository and tag != "latest"
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert tag == f"{version}-ray{ray_version()}"


@overlays
def test_ray_version_is_the_one_of_the_image(name: str) -> None:
    assert {cluster["rayVersion"] for cluster in clusters(name)} == {ray_version()}


@overlays
def test_service_accounts_exist(name: str) -> None:
    accounts = {one["metadata"]["name"]: one for one in of_kind(name, "ServiceAccount")}
    for role, template in templates(name):
        account = template["spec"]["serviceAccountName"]
        assert account in accounts
        # Only who talks to the Kubernetes API has a token: the autoscaler beside the head, and the launcher.
        assert template["spec"]["automountServiceAccountToken"] == (role in ("head", "launcher"))
        assert accounts[account]["automountServiceAccountToken"] is False


@overlays
def test_rights_are_few_and_meet(name: str) -> None:
    assert not of_kind(name, "ClusterRole", "ClusterRoleBinding")
    roles = {one["metadata"]["name"]: one for one in of_kind(name, "Role")}
    accounts = {one["metadata"]["name"] for one in of_kind(name, "ServiceAccount")}
    bindings = of_kind(name, "RoleBinding")
    assert {one["roleRef"]["name"] for one in bindings} == set(roles)
    for binding in bindings:
        for subject in binding["subjects"]:
            assert subject["name"] in accounts
            assert subject["namespace"] == binding["metadata"]["namespace"]
    for role in roles.values():
        for rule in role["rules"]:
            assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create"]}


@overlays
def test_everything_is_in_one_namespace(name: str) -> None:
    (namespace,) = {one["metadata"]["name"] for one in of_kind(name, "Namespace")}
    assert {one["metadata"].get("namespace", namespace) for one in RENDERED[name]} == {namespace}
    assert {one["metadata"]["namespace"] for one in RENDERED["monitoring"]} == {namespace}


@overlays
def test_references_exist_or_are_in_the_docs(name: str) -> None:
    maps = {one["metadata"]["name"] for one in of_kind(name, "ConfigMap")}
    claims = {one["metadata"]["name"] for one in of_kind(name, "PersistentVolumeClaim")}
    docs = (REPOSITORY / "docs" / "clusters.md").read_text()
    for _, container in containers(name):
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                # Made by hand, never in a repository.
                assert source["secretRef"]["optional"] is True
                assert f"create secret generic {source['secretRef']['name']}" in docs
        assert all("value" in one or "fieldRef" in one["valueFrom"] for one in container.get("env", []))
    for _, template in templates(name):
        for volume in template["spec"].get("volumes", []):
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            elif "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            else:
                assert set(volume) == {"name", "emptyDir"}


def test_there_are_no_secrets_in_the_repository() -> None:
    for name in RENDERED:
        assert not of_kind(name, "Secret")


@overlays
def test_what_the_operator_would_refuse(name: str) -> None:
    """KubeRay's own rules (controllers/ray/utils/validation.go, 1.7), which no schema holds."""
    limits = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}
    for one in of_kind(name, *limits):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", one["metadata"]["name"])
        assert len(one["metadata"]["name"]) <= limits[one["kind"]]
    for cluster in clusters(name):
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert all(group["template"]["spec"]["restartPolicy"] == "Never" for group in groups)
        assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
        names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
        assert len(set(names)) == len(names)
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0
        assert "networkPolicy" not in cluster and "tlsOptions" not in cluster  # behind alpha gates
    for spec in job_specs(name):
        assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] >= 0
        assert spec["submissionMode"] == "K8sJobMode" and "clusterSelector" not in spec
        assert "deletionStrategy" not in spec
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
        assert spec["backoffLimit"] > 0
        # The operator fills in a command only where there is none.
        assert "command" not in spec["submitterPodTemplate"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", [folder.name for folder in WITH_RAY if folder.name != "base"])
def test_the_entrypoint_is_a_command_of_ours(name: str) -> None:
    (spec,) = job_specs(name)
    program, script, *flags = argv(spec["entrypoint"], settings(name))
    assert program == "python"
    paths = [word.replace(IN_IMAGE, str(REPOSITORY)) for word in (script, *flags)]
    assert paths[0] == str(REPOSITORY / "jobs" / "mine.py") and Path(paths[0]).is_file()
    config = job.parse(MineConfig, paths[1:], description="")
    config.check()
    assert config.corpus == (f"laion={settings(name)['CORPUS']}",)
    assert config.store == settings(name)["STORE"]
    if name.startswith("schedule-"):
        assert config.runs == settings(name)["RUNS"] and config.out is None
    else:
        assert config.out is not None and config.out.startswith(settings(name)["RUNS"] + "/") and config.runs is None
    assert config.address is None  # RAY_ADDRESS is set
    # With "auto" a run that starts before its GPUs would quietly take CPUs.
    assert config.device == "cuda"
    (recipe,) = [path for flag, path in itertools.pairwise(paths) if flag == "--config"]
    assert load_yaml(MineConfig, recipe).near == config.near
    gpus = sum(
        group["maxReplicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert config.embed.num_actors == gpus
    # The submitter's shell needs what the entrypoint names.
    sources = spec["submitterPodTemplate"]["spec"]["containers"][0]["envFrom"]
    assert {"configMapRef": {"name": "mmvp-ray-settings"}} in sources


def test_an_entrypoint_with_an_unknown_flag_would_be_caught() -> None:
    (spec,) = job_specs("mine")
    _, _, *flags = argv(spec["entrypoint"] + " --num-actor 8", settings("mine"))
    with pytest.raises(SystemExit):
        job.parse(MineConfig, [flag.replace(IN_IMAGE, str(REPOSITORY)) for flag in flags], description="")


def test_schedules_write_a_run_of_their_own_each_week() -> None:
    for name in ("schedule-cronjob", "schedule-raycronjob"):
        (spec,) = job_specs(name)
        _, _, *flags = argv(spec["entrypoint"], settings(name))
        config = job.parse(MineConfig, [flag.replace(IN_IMAGE, str(REPOSITORY)) for flag in flags], description="")
        # Dated by the job, under the store's lease; a try after a failure goes on in the same folder.
        assert config.runs == settings(name)["RUNS"] and config.store_url == settings(name)["STORE"]
        assert config.far[-1] == "hf:" + settings(name)["ENCODERS"] and config.far[-1].endswith("/*")
        (recipe,) = [path for flag, path in itertools.pairwise(flags) if flag == "--config"]
        assert config.far[0] == load_yaml(MineConfig, recipe.replace(IN_IMAGE, str(REPOSITORY))).far[0]
    (cron,) = of_kind("schedule-cronjob", "CronJob")
    (ray_cron,) = of_kind("schedule-raycronjob", "RayCronJob")
    assert cron["spec"]["schedule"] == ray_cron["spec"]["schedule"] == "0 3 * * 0"
    assert cron["spec"]["timeZone"] == ray_cron["spec"]["timeZone"] == "Etc/UTC"


def test_the_cronjob_follows_one_run_to_its_end() -> None:
    (cron,) = of_kind("schedule-cronjob", "CronJob")
    (template,) = of_kind("schedule-cronjob", "RayJob")
    assert template["spec"]["suspend"] is True
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    spec = cron["spec"]["jobTemplate"]["spec"]
    assert template["spec"]["activeDeadlineSeconds"] < spec["activeDeadlineSeconds"] < 7 * 86400
    assert template["spec"]["backoffLimit"] > 0 < spec["backoffLimit"]
    (container,) = spec["template"]["spec"]["containers"]
    assert {"name": "TEMPLATE", "value": template["metadata"]["name"]} in container["env"]
    (rule,) = [one for one in spec["podFailurePolicy"]["rules"] if one["action"] == "FailJob"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    from tests.unit.test_k8s_launch import launch

    assert rule["onExitCodes"]["values"] == [launch.RUN_FAILED]
    # The name of a CronJob's Job ends in eleven more characters, and is the RayJob's.
    assert len(cron["metadata"]["name"]) + 11 <= 47
