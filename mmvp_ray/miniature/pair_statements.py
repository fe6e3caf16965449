"""MMVP-VLM's form of a benchmark of mined pairs: for each picture the sentence that names what was asked about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Statement
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.pair_questions import SOURCE, AskedPair, picture_files, write_pairs


def write_pair_statements(url: str, asked: Sequence[AskedPair], *, name: str) -> Benchmark:
    """Write the pairs as a benchmark of statements in our own layout, under the pair ids of their questions.

    A sentence is what a caption of the world says when it names the attribute: "a red cat on the beach".

    Args:
        url: Folder without a benchmark.
        asked: At least one.
        name: The benchmark's.

    Raises:
        DataError: no pairs. ConfigError: there is a benchmark already.
    """
    return write_pairs(url, asked, _statements, name=name)


def _statements(one: AskedPair, folder: Path) -> list[Statement]:
    return [
        Statement(
            pair_id=one.pair_id,
            item=item,
            image_uri=path,
            text=caption(scene, named=one.question.attribute),
            patterns=(one.question.pattern,),
            provenance={"source": SOURCE, "attribute": one.question.attribute},
        )
        for item, path, scene in picture_files(one, folder)
    ]
