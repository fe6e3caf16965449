"""What the pods of k8s/ may do, have and mount."""

from __future__ import annotations

import re

from tests.unit.test_k8s_checks import clusters, containers, of_kind, overlays, settings, templates

UNITS = {"m": 1e-3, "": 1.0, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", text)
    assert match, text
    return float(match.group(1)) * UNITS[match.group(2)]


@overlays
def test_mounts_meet_volumes(name: str) -> None:
    for _, template in templates(name):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounts = [mount for one in template["spec"]["containers"] for mount in one.get("volumeMounts", [])]
        assert {mount["name"] for mount in mounts} == volumes
        paths = [mount["mountPath"] for mount in mounts]
        assert len(set(paths)) == len(paths)


@overlays
def test_requests_are_within_limits(name: str) -> None:
    for role, container in containers(name):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(requests) and set(requests) == set(limits)
        for resource, text in requests.items():
            assert quantity(text) <= quantity(limits[resource]), (role, resource)
        assert ("nvidia.com/gpu" in limits) == (role == "worker")
        if role in ("head", "worker"):
            # What Ray counts on is what the container may use.
            assert requests["memory"] == limits["memory"] and requests["cpu"] == limits["cpu"]


@overlays
def test_the_object_store_fits(name: str) -> None:
    for cluster in clusters(name):
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            spec = group["template"]["spec"]
            (shm,) = [one["emptyDir"] for one in spec["volumes"] if one["name"] == "shared-mem"]
            assert shm["medium"] == "Memory"
            store = int(group["rayStartParams"]["object-store-memory"])
            memory = quantity(spec["containers"][0]["resources"]["limits"]["memory"])
            assert store < quantity(shm["sizeLimit"]) < 0.5 * memory
            disks = [
                one["emptyDir"] for one in spec["volumes"] if "emptyDir" in one and "medium" not in one["emptyDir"]
            ]
            room = quantity(spec["containers"][0]["resources"]["limits"]["ephemeral-storage"])
            assert sum(quantity(disk["sizeLimit"]) for disk in disks) <= room


@overlays
def test_pods_meet_the_restricted_standard(name: str) -> None:
    (namespace,) = of_kind(name, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for _, template in templates(name):
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in container["securityContext"]
    for cluster in clusters(name):
        # The container that the operator adds; its init containers take the Ray container's context.
        security = cluster["autoscalerOptions"]["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@overlays
def test_the_head_takes_no_tasks_and_a_gpu_is_there_from_the_start(name: str) -> None:
    for cluster in clusters(name):
        params = cluster["headGroupSpec"]["rayStartParams"]
        assert (params["num-cpus"], params["num-gpus"]) == ("0", "0")
        assert sum(group["minReplicas"] for group in cluster["workerGroupSpecs"]) >= 1


@overlays
def test_workers_tolerate_the_taint_of_gpu_nodes(name: str) -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    for role, template in templates(name):
        assert (taint in template["spec"].get("tolerations", [])) == (role == "worker")
        # The image's faiss-gpu and Ray are for this architecture.
        assert template["spec"]["nodeSelector"]["kubernetes.io/arch"] == "amd64"


@overlays
def test_ray_ends_within_the_grace_period(name: str) -> None:
    for role, template in templates(name):
        if role in ("head", "worker"):
            (container,) = template["spec"]["containers"]
            command = container["lifecycle"]["preStop"]["exec"]["command"][-1]
            match = re.fullmatch(r"ray stop --grace-period (\d+)", command)
            assert match and int(match.group(1)) < template["spec"]["terminationGracePeriodSeconds"]


def test_the_volume_is_on_every_pod_that_mines() -> None:
    values = settings("mine-pvc")
    for role, template in templates("mine-pvc"):
        mounts = {mount["mountPath"] for mount in template["spec"]["containers"][0].get("volumeMounts", [])}
        assert ("/shared" in mounts) == (role in ("head", "worker"))
    assert values["STORE"].startswith("/shared/") and values["RUNS"].startswith("/shared/")
    (claim,) = of_kind("mine-pvc", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
