"""Benchmarks of the miniature world in the official layouts: pairs of pictures that differ in exactly one known attribute."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Question, Statement
from mmvp_ray.benchmark.mmvp import write_mmvp
from mmvp_ray.benchmark.mmvp_vlm import write_mmvp_vlm
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE
from mmvp_ray.miniature.questions import questions_for_pair
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.shards import JPEG_QUALITY
from mmvp_ray.miniature.world import VALUES, Scene, sample_scene, scene_generator

_CHOICE_STREAM = 3
_SECOND_PICTURE = 1 << 30
"""Far from the indices of worlds, so that the second picture's nuisance is nobody else's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniaturePair:
    """Two pictures that differ in one attribute (and in nuisance, which means nothing).

    Attributes:
        number: From 1, as in the layouts.
        attribute: The field of `Attributes` in which they differ.
        pattern: Canonical name of the visual pattern that it shows.
        a, b: What the pictures show.
    """

    number: int
    attribute: str
    pattern: str
    a: Scene
    b: Scene


def miniature_pair(seed: int, number: int, attribute: str) -> MiniaturePair:
    """The pair of this number whose pictures differ in `attribute`; the same for the same arguments everywhere."""
    a = sample_scene(seed, number)
    others = [value for value in VALUES[attribute] if value != getattr(a.attributes, attribute)]
    value = others[int(scene_generator(seed, number, _CHOICE_STREAM).random() * len(others))]
    b = replace(
        a,
        attributes=replace(a.attributes, **{attribute: value}),
        nuisance=sample_scene(seed, _SECOND_PICTURE + number).nuisance,
    )
    return MiniaturePair(number=number, attribute=attribute, pattern=PATTERN_BY_ATTRIBUTE[attribute], a=a, b=b)


def mmvp_pairs(num_pairs: int, seed: int) -> list[MiniaturePair]:
    """The pairs of make_mmvp: the nine patterns in turn, in the paper's order."""
    attributes = list(PATTERN_BY_ATTRIBUTE)
    return [
        miniature_pair(seed, number, attributes[(number - 1) % len(attributes)]) for number in range(1, num_pairs + 1)
    ]


def mmvp_vlm_pairs(pairs_per_pattern: int, seed: int) -> list[MiniaturePair]:
    """The pairs of make_mmvp_vlm: one pattern after the other, in the paper's order."""
    attributes = [attribute for attribute in PATTERN_BY_ATTRIBUTE for _ in range(pairs_per_pattern)]
    return [miniature_pair(seed, number, attribute) for number, attribute in enumerate(attributes, start=1)]


def make_mmvp(folder: str | Path, *, num_pairs: int = 18, seed: int = 0) -> Benchmark:
    """Write a benchmark in the MMVP layout: "MMVP Images/N.jpg" (64 x 64 px) and Questions.csv.

    Args:
        folder: A path or any fsspec URL, without a Questions.csv.
        num_pairs: Pair i shows pattern (i - 1) mod 9 in the paper's order; the layout itself has no column for it.
        seed: Of the world. Equal arguments give equal bytes.

    Returns:
        What open_benchmark reads from the folder.
    """
    with tempfile.TemporaryDirectory() as pictures:
        write_mmvp(str(folder), list(_questions(mmvp_pairs(num_pairs, seed), Path(pictures))))
    return open_benchmark(str(folder))


def make_mmvp_vlm(folder: str | Path, *, pairs_per_pattern: int = 2, seed: int = 0) -> Benchmark:
    """Write a benchmark in the MMVP-VLM layout: "MLLM_VLM Images/<Type>/N.jpg" and Questions.csv with simple statements.

    Args:
        folder: A path or any fsspec URL, without a Questions.csv.
        pairs_per_pattern: For each of the nine patterns; the published benchmark has 15.
        seed: Of the world. Equal arguments give equal bytes.

    Returns:
        What open_benchmark reads from the folder.
    """
    with tempfile.TemporaryDirectory() as pictures:
        write_mmvp_vlm(str(folder), list(_statements(mmvp_vlm_pairs(pairs_per_pattern, seed), Path(pictures))))
    return open_benchmark(str(folder))


def picture_bytes(scene: Scene) -> bytes:
    """A scene as the JPEG file that the miniature shards would hold of it."""
    out = io.BytesIO()
    # 4:4:4: chroma subsampling would wash out colours that are two pixels wide.
    Image.fromarray(render(scene)).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def _pictures(pairs: list[MiniaturePair], folder: Path) -> Iterator[tuple[MiniaturePair, str, Scene, str]]:
    """Write the pictures; yield (pair, item, scene, path)."""
    for pair in pairs:
        for item, scene in (("a", pair.a), ("b", pair.b)):
            path = folder / f"{pair.number}{item}.jpg"
            path.write_bytes(picture_bytes(scene))
            yield pair, item, scene, str(path)


def _questions(pairs: list[MiniaturePair], folder: Path) -> Iterator[Question]:
    for pair, item, _, path in _pictures(pairs, folder):
        (asked,) = questions_for_pair(pair.a, pair.b)
        yield Question(
            pair_id=str(pair.number),
            item=item,
            image_uri=path,
            text=asked.question,
            options=asked.options,
            answer=asked.answer_a if item == "a" else asked.answer_b,
            patterns=(pair.pattern,),
            provenance={"source": "miniature world"},
        )


def _statements(pairs: list[MiniaturePair], folder: Path) -> Iterator[Statement]:
    for pair, item, scene, path in _pictures(pairs, folder):
        yield Statement(
            pair_id=str(pair.number),
            item=item,
            image_uri=path,
            text=caption(scene, named=pair.attribute),
            patterns=(pair.pattern,),
            provenance={"source": "miniature world"},
        )
