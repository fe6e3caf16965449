"""The Dockerfile, read as the builder reads it: pinned, not root, of one Ray with everything else, and copying only what there is."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, lines joined and comments left out."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    found = [line.strip().split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest) for name, rest in found]


def dockerfile() -> list[tuple[str, str]]:
    return instructions((REPOSITORY / "Dockerfile").read_text())


def arguments(name: str) -> list[str]:
    return [rest for found, rest in dockerfile() if found == name]


def base_image() -> str:
    """What FROM names, its ARGs filled in."""
    values = {}
    for name, rest in dockerfile():
        if name == "ARG" and "=" in rest:
            key, value = rest.split("=", 1)
            values[key] = value
        if name == "FROM":
            image = re.sub(r"\$\{(\w+)\}", lambda match: values[match.group(1)], rest)
            assert "$" not in image
            return image
    raise AssertionError("no FROM")


def ignored(name: str) -> bool:
    """Whether .dockerignore leaves a name of the checkout's top out: the last pattern that fits decides."""
    result = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        if pattern.removeprefix("!") in ("*", name):
            result = not pattern.startswith("!")
    return result


def test_known_instructions_only() -> None:
    assert {name for name, _ in dockerfile()} <= {"ARG", "FROM", "ENV", "USER", "WORKDIR", "COPY", "RUN"}


def test_the_base_is_pinned_and_of_the_ray_that_pyproject_takes() -> None:
    assert len(arguments("FROM")) == 1
    match = re.fullmatch(r"rayproject/ray:(\d+)\.(\d+)\.(\d+)-py3(\d+)(-cpu|-cu\d+)?", base_image())
    assert match, base_image()
    major, minor, patch, python = map(int, match.groups()[:4])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (ray,) = [one for one in project["dependencies"] if one.startswith("ray[")]
    low, high = re.search(r">=2\.(\d+),<2\.(\d+)$", ray).groups()
    assert major == 2 and int(low) <= minor < int(high)
    low, high = re.search(r">=3\.(\d+),<3\.(\d+)$", project["requires-python"]).groups()
    assert int(low) <= python < int(high)
    # Installing may not move it: the release is in the command, and looked at after.
    runs = " ".join(arguments("RUN"))
    assert '"ray==${RAY_VERSION}"' in runs
    assert "ray.__version__ == '${RAY_VERSION}'" in runs
    assert arguments("ARG")[0] == f"RAY_VERSION={major}.{minor}.{patch}"
    assert "RAY_VERSION" in arguments("ARG")[1:]


def test_it_does_not_end_as_root() -> None:
    users = arguments("USER")
    assert users and all(re.fullmatch(r"[1-9]\d*:\d+", user) for user in users)
    # Before anything is run or copied.
    names = [name for name, _ in dockerfile()]
    assert names.index("USER") < min(names.index("RUN"), names.index("COPY"))
    # The same as in k8s/.
    from tests.unit.test_k8s_checks import templates

    for _, template in templates("schedule-cronjob"):
        security = template["spec"]["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == users[-1]


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    copied = set()
    for rest in arguments("COPY"):
        words = [word for word in shlex.split(rest) if not word.startswith("--")]
        assert f"--chown={arguments('USER')[-1]}" in rest
        copied |= set(words[:-1])
    for name in copied:
        assert (REPOSITORY / name).exists(), name
        assert not ignored(name), name
    kept = {path.name for path in REPOSITORY.iterdir() if not ignored(path.name)}
    assert kept == copied
    assert copied >= {"jobs", "configs", "mmvp_ray", "pyproject.toml"}
    # The build backend reads these.
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= copied


@pytest.mark.parametrize("name", [".git", ".venv", "runs", "tests", "uv.lock", ".env"])
def test_what_stays_here(name: str) -> None:
    assert ignored(name)


def test_what_is_installed_is_compiled() -> None:
    installs = [command for run in arguments("RUN") for command in run.split("&&") if "uv pip install" in command]
    assert len(installs) == 2
    assert all("--compile-bytecode" in command for command in installs)


def test_no_index_and_no_secret() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    assert "latest" not in text
    assert not re.search(r"--(extra-)?index-url|--find-links|https?://|TOKEN|SECRET|PASSWORD", text)


def test_the_paths_in_k8s_are_those_of_the_image() -> None:
    from tests.unit.test_k8s_checks import IN_IMAGE

    assert arguments("WORKDIR") == [IN_IMAGE]


def test_a_container_sees_the_gpus_of_its_node() -> None:
    text = " ".join(arguments("ENV"))
    assert "NVIDIA_VISIBLE_DEVICES=all" in text
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text
    # faiss-gpu's wheel is a CUDA 12 build, PyTorch's a CUDA 13 one: the driver has to run the newer.
    assert 'NVIDIA_REQUIRE_CUDA="cuda>=13.0"' in text
