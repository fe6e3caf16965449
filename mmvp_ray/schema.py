"""The vocabulary of the store: the Arrow schema of every table, with one version for all of them."""

from __future__ import annotations

import pyarrow as pa

from mmvp_ray.errors import DataError

SCHEMA_VERSION = 1
"""Raised by every change that an older reader would misread; it is written into each file and checked on reading."""

IMAGE_ID_BYTES = 16
IMAGE_ID = pa.binary(IMAGE_ID_BYTES)

_VERSION_KEY = b"mmvp_ray.schema_version"
_TABLE_KEY = b"mmvp_ray.table"


def _table(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(
        fields,
        metadata={
            _TABLE_KEY: name.encode(),
            _VERSION_KEY: str(SCHEMA_VERSION).encode(),
        },
    )


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


IMAGES = _table(
    "images",
    [
        _required("image_id", IMAGE_ID),
        _required("uri", pa.string()),
        _required("member", pa.string()),
        pa.field("offset", pa.int64()),
        _required("num_bytes", pa.int64()),
        _required("width_px", pa.int32()),
        _required("height_px", pa.int32()),
        pa.field("caption", pa.string()),
        pa.field("label", pa.string()),
        pa.field("url", pa.string()),
        pa.field("license", pa.string()),
        pa.field("metadata", pa.string()),
    ],
)
"""One row for every place where a decodable image was seen, in the order of the shard.

`offset` is the position of the image's first byte in the file at `uri` (null where the container has no such position, as in
Parquet); `metadata` is the record's other fields as JSON text.
"""

REJECTS = _table(
    "rejects",
    [
        _required("uri", pa.string()),
        _required("member", pa.string()),
        _required("reason", pa.string()),
        _required("detail", pa.string()),
    ],
)
"""One row for every member that could not be used, with a reason from the closed list in images/reasons.py."""

PIECES = _table("pieces", [_required("corpus", pa.string()), _required("piece", pa.string())])
"""A set of committed pieces: those of a run, or those that a table of near pairs joins."""

_PAIR = [_required("image_id_a", IMAGE_ID), _required("image_id_b", IMAGE_ID)]

NEAR_PAIRS = _table("near_pairs", [*_PAIR, _required("cos_near", pa.float64())])
"""Every pair above the floor in the near encoder, image_id_a < image_id_b."""

SCORES = _table("scores", [*_PAIR, _required("cos", pa.float64())])
"""The far encoder's cosine of the near pairs, row for row in the order of the near_pairs file of the same name."""

COPIES = _table(
    "copies",
    [
        _required("image_id", IMAGE_ID),
        _required("group_id", IMAGE_ID),
        _required("group_size", pa.int64()),
    ],
)
"""Members of groups of near-copies; group_id is the smallest image_id of the group, its representative."""

HUBS = _table("hubs", [_required("image_id", IMAGE_ID), _required("degree", pa.int64())])
"""Images with more near pairs than the hub limit, largest degree first."""

BLIND_PAIRS = _table(
    "blind_pairs",
    [
        *_PAIR,
        _required("cos_near", pa.float64()),
        _required("cos_far", pa.float64()),
        _required("num_copies_a", pa.int64()),
        _required("num_copies_b", pa.int64()),
    ],
)
"""Every pair that meets the rule. `num_copies_*`: places where this very image was seen, plus those of the near-copies that it
represents when the run collapsed them; at least 1."""


DIFF = _table(
    "diff",
    [
        *_PAIR,
        _required("change", pa.dictionary(pa.int8(), pa.string())),
        pa.field("cos_near_old", pa.float64()),
        pa.field("cos_far_old", pa.float64()),
        pa.field("cos_near_new", pa.float64()),
        pa.field("cos_far_new", pa.float64()),
    ],
)
"""Every blind pair of two runs, sorted by ids, with what became of it (report.diff_data.CHANGES); a cosine is null where the pair
is not blind in that run. Pairs of images that were taken down are left out."""


def _one_image(side: str) -> list[pa.Field]:
    return [
        _required(f"uri_{side}", pa.string()),
        _required(f"member_{side}", pa.string()),
        pa.field(f"caption_{side}", pa.string()),
        pa.field(f"label_{side}", pa.string()),
        pa.field(f"url_{side}", pa.string()),
        pa.field(f"license_{side}", pa.string()),
        _required(f"num_copies_{side}", pa.int64()),
    ]


PAIRS = _table(
    "pairs",
    [
        _required("rank", pa.int64()),
        *_PAIR,
        _required("cos_near", pa.float64()),
        _required("cos_far", pa.float64()),
        _required("cluster", pa.int64()),
        *_one_image("a"),
        *_one_image("b"),
    ],
)
"""The selection, best first (rank starts at 1)."""


def embeddings_schema(dim: int) -> pa.Schema:
    """Schema of an embeddings table: image_id and a unit-length fp16 vector of `dim` numbers.

    DESIGN section 3: FixedSizeList(halffloat not null), not null, so that DuckDB, Polars and pandas read it without us.
    """
    vector = pa.list_(pa.field("item", pa.float16(), nullable=False), dim)
    return _table("embeddings", [_required("image_id", IMAGE_ID), _required("vector", vector)])


def check_version(schema: pa.Schema, *, where: str) -> None:
    """Raise DataError unless the file's schema says that it was written by this schema version."""
    found = (schema.metadata or {}).get(_VERSION_KEY)
    if found != str(SCHEMA_VERSION).encode():
        shown = "none" if found is None else found.decode(errors="replace")
        raise DataError(
            f"expected a table of mmvp-ray schema version {SCHEMA_VERSION}, found version {shown} in {where}; "
            f"use another --store, or the mmvp-ray version that wrote this one"
        )
