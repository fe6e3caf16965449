"""MMVP-VLM's form of a benchmark of mined pairs: for each picture the sentence that names what was asked about."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import Statement
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.table import write_table
from mmvp_ray.errors import DataError
from mmvp_ray.miniature.captions import caption
from mmvp_ray.miniature.pair_questions import SOURCE, AskedPair


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
    if not asked:
        raise DataError(f"expected pairs to make sentences of, found none for {url}; mine more images")
    with tempfile.TemporaryDirectory() as pictures:
        items = []
        for one in asked:
            for item, data, scene in (("a", one.pair.image_a, one.pair.a), ("b", one.pair.image_b, one.pair.b)):
                path = Path(pictures) / f"{one.pair_id}{item}.jpg"
                path.write_bytes(data)
                items.append(
                    Statement(
                        pair_id=one.pair_id,
                        item=item,
                        image_uri=str(path),
                        text=caption(scene, named=one.question.attribute),
                        patterns=(one.question.pattern,),
                        provenance={"source": SOURCE, "attribute": one.question.attribute},
                    )
                )
        write_table(url, items, name=name)
    return open_benchmark(url)
