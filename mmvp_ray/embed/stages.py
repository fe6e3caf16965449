"""What Ray's workers run: read a shard into pieces, decode a piece, embed a piece. Each takes and gives Arrow rows of one piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmvp_ray.embed.decode_piece import decode_piece
from mmvp_ray.embed.embed_piece import embed_pixels
from mmvp_ray.embed.wire import (
    EncodedPiece,
    encoded_piece,
    encoded_row,
    pixel_piece,
    pixel_row,
    work_from_json,
)
from mmvp_ray.encoders import EncoderSpec, load_encoder
from mmvp_ray.images.geometry import Geometry
from mmvp_ray.images.reasons import RejectReason
from mmvp_ray.sources import Reject, read_pieces
from mmvp_ray.store import Store, commit_embeddings


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob:
    """All that a worker needs to know of an embedding pass; light and picklable.

    Attributes:
        store: Where tables go.
        specs: The encoders, by slug.
        batch_size: Images in a batch.
        num_threads: CPU threads of an encoder actor.
        device: "cuda" or "cpu".
    """

    store: Store
    specs: dict[str, EncoderSpec]
    batch_size: int
    num_threads: int
    device: str

    @property
    def geometries(self) -> list[Geometry]:
        """The distinct geometries of the encoders, in the order of the specs: pixels are made once for each."""
        return list(dict.fromkeys(spec.geometry for spec in self.specs.values()))


def read_shard(rows: pa.Table) -> Iterator[pa.Table]:
    """Read the shard of a one-row table (column `work`) and yield one row for each of its pieces that lacks something."""
    for text in rows.column("work").to_pylist():
        work = work_from_json(text)
        started = time.perf_counter()
        for piece in read_pieces(work.shard, skip=work.skip):
            seconds = time.perf_counter() - started
            yield encoded_row(
                EncodedPiece(
                    piece=piece,
                    images_done=piece.index in work.images_done,
                    missing=tuple(work.missing(piece.index)),
                    read_seconds=seconds,
                )
            )
            started = time.perf_counter()


def decode_row(row: pa.Table, job: EmbedJob) -> pa.Table:
    """Decode the piece of a one-row table for the encoders that lack it."""
    item = encoded_piece(row)
    geometries = job.geometries
    wanted = sorted({geometries.index(job.specs[slug].geometry) for slug in item.missing})
    return pixel_row(decode_piece(job.store, item, geometries, wanted))


class EmbedActor:
    """Holds the encoders of a run and commits the vectors of every piece that comes by."""

    def __init__(self, job: EmbedJob) -> None:
        import torch

        torch.set_num_threads(job.num_threads)
        self._job = job
        self._encoders = {slug: load_encoder(spec, device=job.device) for slug, spec in job.specs.items()}

    def __call__(self, row: pa.Table) -> pa.Table:
        """Embed and commit the piece of a one-row table; gives one row of numbers for the driver's bookkeeping."""
        item = pixel_piece(row)
        geometries = self._job.geometries
        summary: dict[str, Any] = dict(item.counts)
        started = time.perf_counter()
        num_nonfinite = 0
        for slug in item.missing:
            pixels = item.pixels[geometries.index(self._job.specs[slug].geometry)]
            vectors_ND, finite_N = embed_pixels(self._encoders[slug], pixels, batch_size=self._job.batch_size)
            rejects = [
                Reject(
                    uri=item.places[i][0],
                    member=item.places[i][1],
                    reason=RejectReason.NONFINITE_VECTOR,
                    detail=f"encoder {slug}",
                )
                for i in np.flatnonzero(~finite_N)
            ]
            num_nonfinite += len(rejects)
            commit_embeddings(
                self._job.store,
                item.piece,
                slug,
                item.ids_N16[finite_N],
                vectors_ND[finite_N],
                rejects,
            )
        summary |= {
            "piece": item.piece.name,
            "num_embedded": len(item.ids_N16) * len(item.missing) - num_nonfinite,
            "num_distinct": len(item.ids_N16),
            "num_nonfinite": num_nonfinite,
            "embed_seconds": time.perf_counter() - started,
        }
        return pa.Table.from_pylist([summary])
