"""How a piece travels between the stages of Ray Data: one Arrow row for each piece, so that no batch can span two of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray.embed.plan import ShardWork
from mmvp_ray.sources.piece import Piece, Reject, Sample, Shard
from mmvp_ray.storage import FileInfo

# Shapes: N distinct images of a piece, C = 3 channels, H x W pixels.

_TEXTS = [pa.field(name, pa.large_string()) for name in ("caption", "label", "url", "license", "metadata")]
_SAMPLE = pa.struct(
    [
        pa.field("uri", pa.large_string()),
        pa.field("member", pa.large_string()),
        pa.field("offset", pa.int64()),
        pa.field("data", pa.large_binary()),
        *_TEXTS,
    ]
)
_REJECT = pa.struct([pa.field(name, pa.large_string()) for name in ("uri", "member", "reason", "detail")])


def work_to_json(work: ShardWork) -> str:
    """A ShardWork as text, the item that Ray Data hands to a reading task."""
    return json.dumps(
        {
            "shard": dataclasses.asdict(work.shard),
            "images_done": sorted(work.images_done),
            "embedded": {slug: sorted(done) for slug, done in work.embedded.items()},
        }
    )


def work_from_json(text: str) -> ShardWork:
    """The ShardWork that `work_to_json` wrote."""
    found = json.loads(text)
    return ShardWork(
        shard=_shard(found["shard"]),
        images_done=frozenset(found["images_done"]),
        embedded={slug: frozenset(done) for slug, done in found["embedded"].items()},
    )


def _shard(found: dict[str, Any]) -> Shard:
    return Shard(**{**found, "files": tuple(FileInfo(**info) for info in found["files"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPiece:
    """A piece as read, with what is left to do for it: whether its images table exists, and the slugs of missing encoders."""

    piece: Piece
    images_done: bool
    missing: tuple[str, ...]
    read_seconds: float


def encoded_row(item: EncodedPiece) -> pa.Table:
    """One row with a piece's encoded images."""
    piece = item.piece
    samples = [{name: getattr(sample, name) for name in Sample.__slots__} for sample in piece.samples]
    rejects = [{name: getattr(reject, name) for name in Reject.__slots__} for reject in piece.rejects]
    return pa.table(
        {
            "head": [
                _head(
                    piece,
                    images_done=item.images_done,
                    missing=item.missing,
                    read_seconds=item.read_seconds,
                )
            ],
            "samples": pa.array([samples], type=pa.large_list(_SAMPLE)),
            "rejects": pa.array([rejects], type=pa.large_list(_REJECT)),
        }
    )


def encoded_piece(row: pa.Table) -> EncodedPiece:
    """The piece in a one-row table that `encoded_row` made."""
    head = json.loads(row.column("head")[0].as_py())
    piece = Piece(
        shard=_shard(head["shard"]),
        index=head["index"],
        last=head["last"],
        samples=tuple(Sample(**sample) for sample in row.column("samples")[0].as_py()),
        rejects=tuple(Reject(**reject) for reject in row.column("rejects")[0].as_py()),
    )
    return EncodedPiece(
        piece=piece,
        images_done=head["images_done"],
        missing=tuple(head["missing"]),
        read_seconds=head["read_seconds"],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelPiece:
    """A decoded piece.

    Attributes:
        piece: The piece without samples and rejects; those are committed.
        missing: Slugs of the encoders that lack it.
        ids_N16: Ids of its distinct images, (N, 16) uint8, in order of appearance.
        places: For each of them (uri, member) of its first appearance.
        pixels: For each geometry's index, pixels_NCHW uint8.
        counts: Numbers for the summary: num_read, num_rejected, num_decoded, read_seconds, decode_seconds, num_bytes, num_written_bytes,
            reject_reasons (JSON: reason to count).
    """

    piece: Piece
    missing: tuple[str, ...]
    ids_N16: NDArray[np.uint8]
    places: list[tuple[str, str]]
    pixels: dict[int, NDArray[np.uint8]]
    counts: dict[str, Any]


def pixel_row(item: PixelPiece) -> pa.Table:
    """One row with a piece's pixels; they are not copied here."""
    shapes = {str(index): list(pixels.shape) for index, pixels in item.pixels.items()}
    columns: dict[str, Any] = {
        "head": [_head(item.piece, missing=item.missing, counts=item.counts, shapes=shapes)],
        "image_ids": pa.array([item.ids_N16.tobytes()], type=pa.large_binary()),
        "places": [json.dumps(item.places)],
    }
    for index, pixels in item.pixels.items():
        data = np.ascontiguousarray(pixels).reshape(-1)
        offsets = pa.py_buffer(np.array([0, data.nbytes], dtype=np.int64))
        columns[f"pixels_{index}"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(data)])
    return pa.table(columns)


def pixel_piece(row: pa.Table) -> PixelPiece:
    """The piece in a one-row table that `pixel_row` made; its pixels are read-only views."""
    head = json.loads(row.column("head")[0].as_py())
    pixels = {
        int(index): _only_value(row.column(f"pixels_{index}")).reshape(shape) for index, shape in head["shapes"].items()
    }
    return PixelPiece(
        piece=Piece(
            shard=_shard(head["shard"]),
            index=head["index"],
            last=head["last"],
            samples=(),
            rejects=(),
        ),
        missing=tuple(head["missing"]),
        ids_N16=_only_value(row.column("image_ids")).reshape(-1, 16),
        places=[(uri, member) for uri, member in json.loads(row.column("places")[0].as_py())],
        pixels=pixels,
        counts=head["counts"],
    )


def _only_value(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    # Not column[0].as_buffer(): Arrow copies a value on its way into a scalar, and this one has hundreds of megabytes.
    chunk = next(chunk for chunk in column.chunks if len(chunk))
    _, offsets, data = chunk.buffers()
    first, last = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + 2]
    found = np.frombuffer(data or b"", dtype=np.uint8)[first:last]
    found.flags.writeable = False
    return found


def _head(piece: Piece, **more: Any) -> str:
    # A folder's list of files has done its work once the piece is read; left out, it does not travel with every piece.
    shard = {**dataclasses.asdict(piece.shard), "files": []}
    return json.dumps({"shard": shard, "index": piece.index, "last": piece.last, **more})
