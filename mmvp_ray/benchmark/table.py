"""Our own layout: questions.parquet or statements.parquet with everything that is known, and images/<SHA-256>.<ext> beside it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import AS_FOUND
from mmvp_ray.benchmark.image_copies import ImageMode, copy_of
from mmvp_ray.benchmark.image_files import NUM_READING_THREADS, check_inside, hash_images
from mmvp_ray.benchmark.items import Question, Statement, check_question, pairs_of
from mmvp_ray.benchmark.mmvp import refuse_to_overwrite
from mmvp_ray.errors import ConfigError, DataError

TABLE_VERSION = 1
"""Raised by every change that an older reader would misread; written into each file and checked on reading."""

QUESTIONS_TABLE = "questions.parquet"
STATEMENTS_TABLE = "statements.parquet"
IMAGES_FOLDER = "images"

_VERSION_KEY = b"mmvp_ray.benchmark_version"
_NAME_KEY = b"mmvp_ray.benchmark_name"
_ANSWERS_KEY = b"mmvp_ray.benchmark_key"
_IMAGE = re.compile(r"images/([0-9a-f]{64})\.[a-z0-9]{1,8}")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))
_HEAD = [_required("pair_id", pa.string()), _required("item", pa.string()), _required("image", pa.string())]
_TAIL = [_required("patterns", _TEXTS), _required("provenance", pa.map_(pa.string(), _required("value", pa.string())))]

QUESTIONS = pa.schema(
    [
        *_HEAD,
        _required("question", pa.string()),
        _required("options", _TEXTS),
        _required("answer", pa.int32()),
        *_TAIL,
    ]
)
"""One row for each question. `image` is the path in the folder, `answer` the index into `options`, from 0; `patterns` has the primary
one first."""

STATEMENTS = pa.schema([*_HEAD, _required("statement", pa.string()), *_TAIL])
"""One row for each statement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableContent:
    """What a folder in our layout holds.

    Attributes:
        items: Questions or Statements, in the order of the rows.
        name: The benchmark's name; empty if the file has none.
        key: Name of its answer key.
        image_sha256: Digest of each image's bytes by its uri, compared with its name.
    """

    items: list[Question] | list[Statement]
    name: str
    key: str
    image_sha256: Mapping[str, str]


def write_table(
    url: str,
    items: Iterable[Question] | Iterable[Statement],
    *,
    name: str,
    key: str = AS_FOUND,
    images: ImageMode = "identical",
) -> None:
    """Write a benchmark in our layout; the table comes last, so that a folder without one is unfinished.

    Args:
        url: A folder without such a table.
        items: Questions alone or Statements alone.
        name: The benchmark's.
        key: Name of the answer key that the answers are.
        images: "identical" keeps every byte, "reencoded" writes images without metadata (image_copies.copy_of).

    Raises:
        DataError: broken pairs or questions, a missing image, a text that is not valid Unicode. ConfigError: there is one already, or
            items of both kinds.
    """
    rows: Sequence[Any] = list(items)
    if len({type(row) for row in rows}) != 1:
        raise ConfigError(
            f"expected questions alone or statements alone, at least two, found {len(rows)} items for {url}"
        )
    pairs_of(rows)
    asks = isinstance(rows[0], Question)
    file = QUESTIONS_TABLE if asks else STATEMENTS_TABLE
    for other in (QUESTIONS_TABLE, STATEMENTS_TABLE):
        refuse_to_overwrite(url, other)
    for row in rows:
        if asks:
            check_question(row)
    names = _write_images(url, sorted({row.image_uri for row in rows}), images)
    columns: dict[str, list[Any]] = {
        "pair_id": [row.pair_id for row in rows],
        "item": [row.item for row in rows],
        "image": [names[row.image_uri] for row in rows],
        "question" if asks else "statement": [row.text for row in rows],
        "patterns": [list(row.patterns) for row in rows],
        "provenance": [list(row.provenance.items()) for row in rows],
    }
    if asks:
        columns |= {"options": [list(row.options) for row in rows], "answer": [row.answer for row in rows]}
    schema = (QUESTIONS if asks else STATEMENTS).with_metadata(
        {_VERSION_KEY: str(TABLE_VERSION), _NAME_KEY: name, _ANSWERS_KEY: key}
    )
    try:
        table = pa.table({field.name: columns[field.name] for field in schema}, schema=schema)
    except (UnicodeEncodeError, pa.ArrowException) as error:
        raise DataError(
            f"expected texts of valid Unicode, found one that cannot be written ({error}) for {url}"
        ) from error
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    storage.write_bytes(storage.join(url, file), out.getvalue())


def read_table(url: str) -> TableContent:
    """Read a folder in our layout.

    Raises:
        DataError: another version, columns missing or of another kind, an image that is missing or is not the one that was written, both
            tables in one folder.
    """
    files = [file for file in (QUESTIONS_TABLE, STATEMENTS_TABLE) if storage.exists(storage.join(url, file))]
    if len(files) != 1:
        raise DataError(f"expected {QUESTIONS_TABLE} or {STATEMENTS_TABLE}, found {files or 'neither'} in {url}")
    uri = storage.join(url, files[0])
    check_inside(url, [uri])
    asks = files[0] == QUESTIONS_TABLE
    table = _checked(uri, QUESTIONS if asks else STATEMENTS)
    metadata = table.schema.metadata
    rows = table.to_pylist()
    for number, row in enumerate(rows, start=1):
        if not _IMAGE.fullmatch(row["image"]):
            raise DataError(f"expected images/<SHA-256>.<ext>, found {row['image'][:120]!r} in {uri}, row {number}")
    paths = {row["image"]: storage.join(url, row["image"]) for row in rows}
    check_inside(url, paths.values())
    digests = hash_images(paths.values())
    for path, image_uri in paths.items():
        if not path.startswith(f"images/{digests[image_uri]}."):
            raise DataError(f"expected the image whose SHA-256 is its name, found {digests[image_uri]} at {image_uri}")
    items: list[Any] = []
    for row in rows:
        shared = {
            "pair_id": row["pair_id"],
            "item": row["item"],
            "image_uri": paths[row["image"]],
            "patterns": tuple(row["patterns"]),
            "provenance": dict(row["provenance"]),
        }
        if asks:
            items.append(Question(text=row["question"], options=tuple(row["options"]), answer=row["answer"], **shared))
        else:
            items.append(Statement(text=row["statement"], **shared))
    return TableContent(
        items=items,
        name=metadata.get(_NAME_KEY, b"").decode(errors="replace"),
        key=metadata.get(_ANSWERS_KEY, AS_FOUND.encode()).decode(errors="replace"),
        image_sha256=digests,
    )


def _checked(uri: str, schema: pa.Schema) -> pa.Table:
    """The table's columns in the schema's order and types, metadata kept."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
        found = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
        if found != str(TABLE_VERSION):
            raise DataError(
                f"expected a benchmark table of version {TABLE_VERSION}, found version {found} in {uri}; write it with mmvp-ray"
            )
        missing = [name for name in schema.names if name not in table.schema.names]
        if missing:
            raise DataError(f"expected the columns {schema.names}, found no {missing} in {uri}")
        metadata = table.schema.metadata
        table = table.select(schema.names)
        nulls = [name for name in schema.names if table[name].null_count]
        if nulls:
            raise DataError(f"expected no empty cells, found some in the columns {nulls} of {uri}")
        return table.cast(schema).replace_schema_metadata(metadata)
    except pa.ArrowException as error:
        shown = " ".join(str(error).split())[:200]
        raise DataError(f"expected a Parquet table with the columns {schema.names}, found {shown} in {uri}") from error


def _write_images(url: str, uris: Sequence[str], mode: ImageMode) -> dict[str, str]:
    """Write copies of the images under the digests of their bytes; give each one's path in the folder."""

    def put(uri: str) -> str:
        data, extension = copy_of(uri, mode=mode)
        path = f"{IMAGES_FOLDER}/{sha256(data).hexdigest()}.{extension}"
        storage.write_bytes(storage.join(url, path), data)
        return path

    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        return dict(zip(uris, pool.map(put, uris), strict=True))
