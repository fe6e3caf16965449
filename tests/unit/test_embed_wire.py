"""What travels between the stages arrives as it left: works, encoded pieces and pixels, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.embed.plan import ShardWork
from mmvp_ray.embed.wire import (
    EncodedPiece,
    PixelPiece,
    encoded_piece,
    encoded_row,
    pixel_piece,
    pixel_row,
    work_from_json,
    work_to_json,
)
from mmvp_ray.sources.piece import Piece, Reject, Sample, Shard
from mmvp_ray.storage import FileInfo

# Lone surrogates are what no table can hold; sources replace them (test_sources_*).
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.text(max_size=10)
MAYBE = st.none() | TEXTS
SIZES = st.integers(0, 2**62)
FILES = st.builds(FileInfo, uri=NAMES, num_bytes=SIZES, etag=TEXTS)
SHARDS = st.builds(
    Shard,
    corpus=TEXTS,
    kind=st.sampled_from(["tar", "parquet", "folder"]),
    uri=NAMES,
    num_bytes=SIZES,
    etag=TEXTS,
    files=st.lists(FILES, max_size=3).map(tuple),
    max_members=st.none() | st.integers(1, 10**9),
)
SAMPLES = st.builds(
    Sample, uri=TEXTS, member=TEXTS, offset=st.none() | SIZES, data=st.binary(max_size=50),
    caption=MAYBE, label=MAYBE, url=MAYBE, license=MAYBE, metadata=MAYBE,
)  # fmt: skip
REJECTS = st.builds(Reject, uri=TEXTS, member=TEXTS, reason=TEXTS, detail=TEXTS)
PIECES = st.builds(
    Piece,
    shard=SHARDS,
    index=st.integers(0, 10**7),
    last=st.booleans(),
    samples=st.lists(SAMPLES, max_size=4).map(tuple),
    rejects=st.lists(REJECTS, max_size=3).map(tuple),
)
SLUGS = st.lists(TEXTS, max_size=3, unique=True).map(tuple)
INDICES = st.frozensets(st.integers(0, 10**6), max_size=5)
SECONDS = st.floats(0, 1e6)


def travel(row: pa.Table) -> pa.Table:
    """Through Arrow's own wire format, beside another row, as Ray sends and joins blocks."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(pa.concat_tables([row, row]))
    return pa.ipc.open_stream(sink.getvalue()).read_all().slice(1, 1)


def without_files(piece: Piece) -> Piece:
    return dataclasses.replace(piece, shard=dataclasses.replace(piece.shard, files=()))


@settings(deadline=None, max_examples=50)
@given(st.builds(ShardWork, shard=SHARDS, images_done=INDICES, embedded=st.dictionaries(TEXTS, INDICES, max_size=3)))
def test_work(work: ShardWork) -> None:
    text = work_to_json(work)
    assert text.isascii() and work_from_json(text) == work
    assert list(work_from_json(text).embedded) == list(work.embedded)


@settings(deadline=None, max_examples=60)
@given(st.builds(EncodedPiece, piece=PIECES, images_done=st.booleans(), missing=SLUGS, read_seconds=SECONDS))
def test_encoded_pieces(item: EncodedPiece) -> None:
    row = encoded_row(item)
    assert row.num_rows == 1
    found = encoded_piece(travel(row))
    assert found == dataclasses.replace(item, piece=without_files(item.piece))
    assert found.piece.name == dataclasses.replace(item.piece).name


def test_all_pieces_have_one_schema() -> None:
    shard = Shard(corpus="c", kind="tar", uri="u", num_bytes=1, etag="e")
    empty = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    full = dataclasses.replace(
        empty,
        samples=(Sample(uri="u", member="m", offset=None, data=b"x", caption="c"),),
        rejects=(Reject(uri="u", member="m", reason="r", detail="d"),),
    )
    rows = [
        encoded_row(EncodedPiece(piece=one, images_done=False, missing=(), read_seconds=0.0)) for one in (empty, full)
    ]
    assert rows[0].schema.equals(rows[1].schema)


@settings(deadline=None, max_examples=50)
@given(
    piece=PIECES,
    missing=SLUGS,
    num_images=st.integers(0, 4),
    shapes=st.dictionaries(st.integers(0, 5), st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=3),
    data=st.data(),
)
def test_pixels(
    piece: Piece, missing: tuple[str, ...], num_images: int, shapes: dict[int, tuple[int, int]], data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    item = PixelPiece(
        piece=piece,
        missing=missing,
        ids_N16=rng.integers(0, 256, (num_images, 16), dtype=np.uint8),
        places=data.draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=num_images, max_size=num_images)),
        pixels={
            index: rng.integers(0, 256, (num_images, 3, *shape), dtype=np.uint8) for index, shape in shapes.items()
        },
        counts={"num_read": 3, "read_seconds": 0.25},
    )
    row = pixel_row(item)
    assert row.num_rows == 1
    found = pixel_piece(travel(row))
    assert found.piece == dataclasses.replace(without_files(piece), samples=(), rejects=())
    assert (found.missing, found.places, found.counts) == (missing, item.places, item.counts)
    assert np.array_equal(found.ids_N16, item.ids_N16) and found.ids_N16.shape == (num_images, 16)
    assert list(found.pixels) == list(item.pixels)
    for index, pixels in item.pixels.items():
        assert found.pixels[index].dtype == np.uint8 and found.pixels[index].shape == pixels.shape
        assert np.array_equal(found.pixels[index], pixels)


def test_pixels_are_not_copied() -> None:
    shard = Shard(corpus="c", kind="tar", uri="u", num_bytes=1, etag="e")
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    item = PixelPiece(
        piece=Piece(shard=shard, index=0, last=True, samples=(), rejects=()),
        missing=("x",),
        ids_N16=np.zeros((2, 16), np.uint8),
        places=[("u", "a"), ("u", "b")],
        pixels={0: pixels},
        counts={},
    )
    found = pixel_piece(pixel_row(item)).pixels[0]
    assert np.shares_memory(found, pixels)
    assert not found.flags.writeable
    # A part of a larger array, as decoding leaves it when some images were rejected.
    part = dataclasses.replace(item, pixels={0: np.repeat(pixels, 2, axis=0)[::2]})
    assert np.array_equal(pixel_piece(pixel_row(part)).pixels[0], pixels)


def test_a_surrogate_is_refused_and_not_changed_silently() -> None:
    shard = Shard(corpus="c", kind="tar", uri="u", num_bytes=1, etag="e")
    piece = Piece(
        shard=shard, index=0, last=True, samples=(Sample(uri="u", member="\udcff", offset=0, data=b""),), rejects=()
    )
    with pytest.raises(UnicodeError):
        encoded_row(EncodedPiece(piece=piece, images_done=False, missing=(), read_seconds=0.0))
