"""A Parquet file with the images inside, which the Hugging Face datasets library reads with an Image column."""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.image_copies import ImageMode, copy_of
from mmvp_ray.benchmark.image_files import NUM_READING_THREADS
from mmvp_ray.benchmark.items import Question, Statement
from mmvp_ray.errors import DataError
from mmvp_ray.reading_threads import reading_threads

ROWS_PER_GROUP = 100
"""Rows of a row group, as the Hugging Face hub's viewer wants them for images."""

# Every field is nullable: datasets takes an Image feature from the metadata only where the file's field equals its own, which is.
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_HEAD = [
    ("index", pa.int64()),
    ("pair_id", pa.string()),
    ("item", pa.string()),
    ("num_items", pa.int64()),
    ("image", _IMAGE),
]
_TAIL = [
    ("patterns", pa.list_(pa.string())),
    ("license", pa.string()),
    ("source", pa.string()),
    ("provenance", pa.string()),
]
_QUESTION = [("question", pa.string()), ("options", pa.list_(pa.string())), ("answer", pa.string())]
_STATEMENT = [("statement", pa.string())]
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}
"""Of the other columns datasets takes the Arrow types, whatever its version calls lists."""


def embedded_schema(kind: str) -> pa.Schema:
    """Schema of the file.

    index: from 1, the halves of a pair side by side. num_items: questions or statements of the pair. answer: the capital letter of the
    right option. license, source: from the provenance, empty if unknown. provenance: all of it as JSON text.
    """
    fields = [*_HEAD, *(_QUESTION if kind == "questions" else _STATEMENT), *_TAIL]
    return pa.schema(fields, metadata={"huggingface": json.dumps(_FEATURES)})


def write_embedded(
    uri: str, benchmark: Benchmark, pairs: Sequence[Sequence[Question | Statement]], images: ImageMode
) -> None:
    """Write the file; a hundred images are in memory at a time.

    Args:
        uri: Where to.
        benchmark: Says the kind.
        pairs: Its items, pair by pair.
        images: As in image_copies.copy_of.

    Raises:
        DataError: an image is missing or broken, or a text is not valid Unicode.
    """
    schema = embedded_schema(benchmark.kind)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "table.parquet"
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            for rows in _groups(pairs, images):
                try:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                except (UnicodeEncodeError, pa.ArrowException) as error:
                    raise DataError(
                        f"expected texts of valid Unicode, found one that cannot be written ({error}) for {uri}"
                    ) from error
        storage.write_file(uri, local)


def _groups(pairs: Sequence[Sequence[Question | Statement]], images: ImageMode) -> Iterator[list[dict[str, Any]]]:
    numbered = [
        (index, len(pair), item) for index, (pair, item) in enumerate(((p, i) for p in pairs for i in p), start=1)
    ]
    with reading_threads(NUM_READING_THREADS) as pool:
        for first in range(0, len(numbered), ROWS_PER_GROUP):
            group = numbered[first : first + ROWS_PER_GROUP]
            copies = pool.map(lambda entry: copy_of(entry[2].image_uri, mode=images), group)
            yield [
                _row(index, num_items, item, *copy)
                for (index, num_items, item), copy in zip(group, copies, strict=True)
            ]


def _row(index: int, num_items: int, item: Question | Statement, data: bytes, extension: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"statement": item.text}
    if isinstance(item, Question):
        if len(item.options) > len(string.ascii_uppercase):
            raise DataError(f"expected at most 26 options, found {len(item.options)} in question {item.key!r}")
        asked = {
            "question": item.text,
            "options": list(item.options),
            "answer": string.ascii_uppercase[item.answer],
        }
    return {
        "index": index,
        "pair_id": item.pair_id,
        "item": item.item,
        "num_items": num_items,
        "image": {"bytes": data, "path": f"{index}.{extension}"},
        **asked,
        "patterns": list(item.patterns),
        "license": item.provenance.get("license", ""),
        "source": item.provenance.get("source", ""),
        "provenance": json.dumps(dict(item.provenance), sort_keys=True),
    }
