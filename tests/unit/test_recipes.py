"""The recipes load, --help is light, and the package's face is what the README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmvp_ray
from mmvp_ray.config import load_yaml
from mmvp_ray.pipeline.config import MineConfig

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_loads_and_passes_its_checks(path: Path) -> None:
    config = load_yaml(MineConfig, str(path))
    config.check()
    assert config.recipe == path.stem
    assert config.out_url.endswith(f"runs/{path.stem}")


@pytest.mark.parametrize("name", ["imagenet", "laion_aesthetics"])
def test_the_papers_recipes_name_the_papers_encoders_and_thresholds(name: str) -> None:
    config = load_yaml(MineConfig, str(REPOSITORY / f"configs/{name}.yaml"))
    assert (config.near, config.far) == (("open_clip:ViT-L-14/openai",), ("hf:facebook/dinov2-large",))
    assert (config.rule.near_above, config.rule.far_below) == (0.95, 0.6)


def test_the_miniature_recipe_is_the_default() -> None:
    recipe = load_yaml(MineConfig, str(REPOSITORY / "configs/miniature.yaml"))
    default = MineConfig()
    assert (recipe.corpus, recipe.near, recipe.far, recipe.recipe) == (
        default.corpus,
        default.near,
        default.far,
        default.recipe,
    )


def test_help_explains_every_flag_without_heavy_imports() -> None:
    code = (
        "import sys, runpy; sys.argv = ['jobs/mine.py', '--help']\n"
        "try: runpy.run_path('jobs/mine.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'open_clip', 'timm', 'matplotlib', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    for flag in (
        "--corpus",
        "--near ",
        "--far ",
        "--near-above",
        "--far-quantile",
        "--store",
        "--out",
        "--engine",
        "--device",
        "--select",
    ):
        assert flag in result.stdout
    for flag in ("--max-images", "--max-reject-fraction", "--collapse", "--address", "--plan", "--config"):
        assert flag in result.stdout


def test_the_job_can_be_executed() -> None:
    path = REPOSITORY / "jobs/mine.py"
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/usr/bin/env python\n")


def test_the_public_face() -> None:
    assert set(mmvp_ray.__all__) == {"MineConfig", "Run", "mine_pairs", "open_run"}
    assert all(callable(getattr(mmvp_ray, name)) for name in mmvp_ray.__all__)
    with pytest.raises(AttributeError):
        mmvp_ray.nothing  # noqa: B018
