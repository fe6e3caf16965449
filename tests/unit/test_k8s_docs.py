"""docs/clusters.md names only what there is: files, commands with flags that are taken, objects of k8s/, the image; and its table is arithmetic."""

from __future__ import annotations

import re
import shlex

import pytest

from mmvp_ray import job
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.unit_costs import DECODE_IMAGES_PER_SECOND, Hardware, table_costs
from mmvp_ray.sources.piece import PIECE_MEMBERS
from tests.unit.test_k8s_checks import RENDERED, REPOSITORY, of_kind

TEXT = (REPOSITORY / "docs" / "clusters.md").read_text()


def commands() -> list[list[str]]:
    """The words after `python jobs/mine.py` in every indented block, lines joined."""
    text = re.sub(r"\\\n", " ", TEXT)
    return [shlex.split(rest) for rest in re.findall(r"(?m)^ {4,}.*python jobs/mine\.py (.*)$", text)]


@pytest.mark.parametrize("flags", commands(), ids=" ".join)
def test_commands_are_taken(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    config = job.parse(MineConfig, flags, description="")
    config.check()
    assert config.device == "cuda" and config.store and (config.out or config.runs)


def test_there_are_commands() -> None:
    assert len(commands()) >= 3


def test_paths_exist() -> None:
    named = set(re.findall(r"\b(?:k8s|configs|jobs|docs)/[\w./-]*\w", TEXT)) | set(
        re.findall(r"\]\(([\w./-]+\.md)", TEXT)
    )
    assert len(named) > 10
    for path in named:
        assert (REPOSITORY / path).exists() or (REPOSITORY / "docs" / path).exists(), path


def test_objects_exist() -> None:
    there = {(one["kind"].lower(), one["metadata"]["name"]) for found in RENDERED.values() for one in found}
    named = set(re.findall(r"\b(rayjob|cronjob|raycronjob|job)[ /](mmvp-ray-[\w-]+)", TEXT))
    assert len(named) >= 3
    for kind, name in named:
        # A RayJob's submitter is a Job of its name.
        assert (kind, name) in there or (kind == "job" and ("rayjob", name) in there), (kind, name)
    policies = {one["metadata"]["name"] for one in of_kind("mine", "NetworkPolicy")}
    assert set(re.findall(r"`(mmvp-ray-(?:out|jobs|prometheus|deny))`", TEXT)) <= policies


def test_links_within_the_page() -> None:
    heads = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in re.findall(r"(?m)^#+ (.*)$", TEXT)
    }
    links = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert links and links <= heads


def test_the_image_is_the_one_of_k8s() -> None:
    (image,) = {
        group["template"]["spec"]["containers"][0]["image"]
        for one in of_kind("base", "RayCluster")
        for group in one["spec"]["workerGroupSpecs"]
    }
    assert set(re.findall(r"your-registry/mmvp-ray:[\w.-]+", TEXT)) == {image}


def test_the_table_is_arithmetic() -> None:
    rows = {
        cells[0]: cells[1:]
        for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|"))
    }  # fmt: skip

    def near(text: str, expected: float) -> None:
        shown = float(re.sub(r"[^\d.]", "", text.replace(" million", "e6").split("e6")[0]))
        scale = 1e6 if "million" in text else 1e3 if "TB" in text else 1.0
        assert shown * scale == pytest.approx(expected, rel=0.07), (text, expected)

    flop = 2 * 2 * 304e6 * 256
    flop_per_second = table_costs(Hardware.parse("1xH100")).encode_flop_per_second
    for column, images in enumerate((1e6, 1e8, 1e9)):
        near(rows["reading"][column], images * 1e5 / 1e9)
        near(rows["embedding, GPU hours"][column], images * flop / flop_per_second / 3600)
        near(rows["decoding, core hours"][column], images / DECODE_IMAGES_PER_SECOND / 3600)
        near(rows["vectors"][column], images * (1536 + 2048) / 1e9)
        near(rows["store, with ids and images tables"][column], images * (1536 + 2048 + 32 + 400) / 1e9)
        near(rows["pieces"][column], images / PIECE_MEMBERS)
        near(rows["objects in the store"][column], 6 * images / PIECE_MEMBERS)
        seconds = images**2 * 768 / 4e14
        near(rows["exact join, GPU hours at 4e14 FLOP/s"][column], seconds if column == 0 else seconds / 3600)
