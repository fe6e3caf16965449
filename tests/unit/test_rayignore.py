"""What `ray job submit --working-dir .` uploads, found by Ray's own walk: the program whole, and little else."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = "mmvp_ray/encoders/miniature/weights/"


def upload(folder: Path) -> dict[str, int]:
    """Path to size of every file that Ray would put into the package of `folder`. Starts nothing."""
    from ray._private.runtime_env import packaging

    found: dict[str, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size

    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.CRITICAL)
    packaging._dir_travel(folder, [], take, include_gitignore=True, logger=quiet)
    return found


@pytest.fixture(scope="module")
def uploaded() -> dict[str, int]:
    return upload(REPOSITORY)


def test_it_is_small(uploaded: dict[str, int]) -> None:
    # Ray stores the files uncompressed. The miniature encoders' weights are most of it (4.2 MB) and must come along.
    code = sum(size for path, size in uploaded.items() if not path.startswith(WEIGHTS))
    assert code < 3_500_000
    assert sum(uploaded.values()) < 8_000_000


def test_the_package_is_what_ray_makes_of_it(uploaded: dict[str, int], tmp_path: Path) -> None:
    from ray._private.runtime_env import packaging

    quiet = logging.getLogger("quiet")
    target = tmp_path / "package.zip"
    packaging.create_package(str(REPOSITORY), target, include_gitignore=True, logger=quiet)
    with zipfile.ZipFile(target) as package:
        sizes = {info.filename: info.file_size for info in package.infolist() if not info.is_dir()}
        # Other tests may write a file of the checkout meanwhile.
        assert sizes.keys() == uploaded.keys()
        assert package.getinfo("jobs/mine.py").external_attr >> 16 & 0o100, "Ray keeps the bits of a file's mode"
    weights = sum(size for path, size in sizes.items() if path.startswith(WEIGHTS))
    # Besides the weights, which the default encoders are, it is 3 MB of source text: a submit sends a few megabytes and no more.
    assert target.stat().st_size - weights < 4_000_000
    assert target.stat().st_size < 8_000_000


def test_the_program_is_whole(uploaded: dict[str, int]) -> None:
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("jobs", "configs", "mmvp_ray")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there - set(uploaded) == set()
    assert sum(path.startswith(WEIGHTS) for path in uploaded) >= 3
    assert "pyproject.toml" in uploaded


def test_nothing_else_of_weight(uploaded: dict[str, int]) -> None:
    folders = {path.split("/", 1)[0] for path in uploaded if "/" in path}
    assert folders == {"jobs", "configs", "mmvp_ray"}
    assert not [path for path in uploaded if path.endswith((".pyc", ".parquet", ".tar"))]


def test_what_appears_in_a_checkout_stays_there(tmp_path: Path) -> None:
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((REPOSITORY / name).read_text())
    left = [
        ".git/objects/pack", ".venv/lib/python", ".pytest_cache/v", ".mypy_cache/3.11", ".env", "runs/a/report.html", "dist/a.whl",
        "tests/unit/test_a.py", "docs/a.md", "benchmarks/a.py", "k8s/a.yaml", "data/shard.bin", "photos.tar", "x/table.parquet",
        "mmvp_ray/__pycache__/a.pyc", "uv.lock",
    ]  # fmt: skip
    taken = [
        "jobs/mine.py",
        "configs/data/own.yaml",
        "mmvp_ray/data/a.py",
        "mmvp_ray/tests/b.py",
        "my_encoder.py",
        "pyproject.toml",
    ]
    for path in (*left, *taken):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    assert set(upload(tmp_path)) - {".rayignore", ".gitignore"} == {*taken}
