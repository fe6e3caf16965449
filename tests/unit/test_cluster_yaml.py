"""cluster.yaml against the schema of Ray's cluster launcher, and against what that schema does not check."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.unit.kustomize import load_all
from tests.unit.test_dockerfile import base_image
from tests.unit.test_k8s_checks import ray_version

REPOSITORY = Path(__file__).resolve().parents[2]
INSTANCES = {"m7i.2xlarge": {"CPU": 8}, "g6e.4xlarge": {"CPU": 16, "GPU": 1}}
"""vCPUs and GPUs as EC2 lists them; whoever takes another instance type adds it here."""


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    (found,) = load_all(REPOSITORY / "cluster.yaml")
    return dict(found)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    # Not by `import ray`, which takes a second.
    found = importlib.util.find_spec("ray")
    assert found is not None and found.submodule_search_locations
    path = Path(next(iter(found.submodule_search_locations))) / "autoscaler" / "ray-schema.json"
    return dict(json.loads(path.read_text()))


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def commands(cluster: dict[str, Any]) -> list[str]:
    names = [name for name in cluster if name.endswith("_commands")]
    assert len(names) == 5
    return [command for name in names for command in cluster[name]]


def test_schema(cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(cluster, schema)


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        (("max_worker",), 1),
        (("docker", "images"), "x"),
        (("auth", "user"), "ubuntu"),
        (("available_node_types", "gpu", "max_worker"), 1),
        (("available_node_types", "gpu", "resources", "GPU"), "1"),
    ],
    ids=str,
)
def test_a_typo_is_caught(
    cluster: dict[str, Any], schema: dict[str, Any], pointer: tuple[str, ...], value: Any
) -> None:
    changed = copy.deepcopy(cluster)
    place = changed
    for key in pointer[:-1]:
        place = place[key]
    place[pointer[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, schema)


def test_node_types(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    for one in types.values():
        assert 0 <= one["min_workers"] <= one["max_workers"]
    assert cluster["max_workers"] == sum(one["max_workers"] for one in workers(cluster).values())
    # The head type makes heads only.
    assert types[cluster["head_node_type"]]["max_workers"] == 0
    # --device cuda needs a GPU from the first moment.
    assert sum(one["min_workers"] * one["resources"]["GPU"] for one in workers(cluster).values()) >= 1


def test_resources_are_those_of_the_instances(cluster: dict[str, Any]) -> None:
    for one in workers(cluster).values():
        assert one["resources"] == INSTANCES[one["node_config"]["InstanceType"]]
    head = cluster["available_node_types"][cluster["head_node_type"]]
    # No tasks on the head: said to the autoscaler and to Ray alike.
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "GPU" not in INSTANCES[head["node_config"]["InstanceType"]]
    (start,) = [one for one in cluster["head_start_ray_commands"] if "ray start" in one]
    assert "--num-cpus=0" in start and "--num-gpus=0" in start


def test_spot(cluster: dict[str, Any]) -> None:
    spot = {name for name, one in workers(cluster).items() if "InstanceMarketOptions" in one["node_config"]}
    assert spot and spot < set(workers(cluster))
    for name, one in workers(cluster).items():
        assert (one.get("priority", 0) > 0) == (name in spot)
        assert (one["min_workers"] == 0) == (name in spot)
    # A stopped spot instance is gone.
    assert cluster["provider"]["cache_stopped_nodes"] is False
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]


def test_one_ray_everywhere(cluster: dict[str, Any]) -> None:
    image = cluster["docker"]["image"]
    assert image == base_image()
    assert image.startswith(f"rayproject/ray:{ray_version()}-py")
    assert not {"head_image", "worker_image"} & set(cluster["docker"])
    named = [
        version for command in commands(cluster) for version in re.findall(r"ray(?:\[[^]]*\])?==([\d.]+)", command)
    ]
    assert named and set(named) == {ray_version()}


def test_the_wheel_that_is_installed_is_the_one_that_is_built(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wheel = f"{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    (remote,) = [path for path, local in cluster["file_mounts"].items() if local == "dist"]
    assert any(f"{remote}/{wheel}" in command for command in cluster["setup_commands"])
    # The launcher hashes all that lies in a folder that it mounts.
    assert set(cluster["file_mounts"].values()) == {"dist", "~/.ray/auth_token"}


def test_token_authentication_is_on_for_every_process(cluster: dict[str, Any]) -> None:
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    # In no command and no option: they are logged, and readable in the instances' metadata.
    assert "RAY_AUTH_TOKEN" not in (REPOSITORY / "cluster.yaml").read_text()


def test_nothing_is_open_to_the_world(cluster: dict[str, Any]) -> None:
    for one in cluster["available_node_types"].values():
        # Where it is left out Ray makes a group with port 22 open to 0.0.0.0/0.
        assert one["node_config"]["SecurityGroupIds"]
        assert one["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    assert "0.0.0.0" not in json.dumps(cluster)
    (start,) = [one for one in cluster["head_start_ray_commands"] if "ray start" in one]
    assert "--dashboard-host=127.0.0.1" in start


def test_access_to_s3_is_by_profile(cluster: dict[str, Any]) -> None:
    for one in cluster["available_node_types"].values():
        assert re.fullmatch(
            r"arn:aws:iam::\d{12}:instance-profile/[\w-]+", one["node_config"]["IamInstanceProfile"]["Arn"]
        )
    text = (REPOSITORY / "cluster.yaml").read_text()
    assert "AWS_ACCESS_KEY_ID" not in text and "AWS_SECRET" not in text


def test_nodes_find_each_other_and_go_when_idle(cluster: dict[str, Any]) -> None:
    (head,) = [one for one in cluster["head_start_ray_commands"] if "ray start" in one]
    (worker,) = [one for one in cluster["worker_start_ray_commands"] if "ray start" in one]
    (port,) = re.findall(r" --port=(\d+)", head)
    assert f"--address=$RAY_HEAD_IP:{port}" in worker
    for flag in ("--object-manager-port", "--metrics-export-port"):
        assert re.findall(rf"{flag}=(\d+)", head) == re.findall(rf"{flag}=(\d+)", worker) != []
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert cluster[name][0] == "ray stop"
    assert 0 < cluster["idle_timeout_minutes"] <= 30
