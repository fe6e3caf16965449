"""The table of aesthetic scores: made piece by piece from stored vectors, and read as the images that a least score leaves.

    ROOT/aesthetics/<encoder>/<corpus>/<piece>.parquet      image_id, score: row for row the embeddings of the piece

A piece's marker names the head and the embeddings that it was made of: with another head, or after a takedown, the piece is scored again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.encoders.aesthetic_head import AestheticHead
from mmvp_ray.errors import DataError
from mmvp_ray.reading_threads import reading_threads
from mmvp_ray.schema import IMAGE_ID, PIECES
from mmvp_ray.store import (
    DONE,
    PieceRef,
    Store,
    id_array,
    id_keys,
    id_matrix,
    read_embeddings,
    read_marker,
    read_table,
    write_marker,
    write_table,
)

# Shapes: N vectors of a piece.

AESTHETICS = pa.schema(
    [pa.field("image_id", IMAGE_ID, nullable=False), pa.field("score", pa.float32(), nullable=False)],
    metadata={**PIECES.metadata, b"mmvp_ray.table": b"aesthetics"},
)
"""The score of every stored vector, in the order of the embeddings."""

PIECES_PER_TASK = 64
NUM_READING_THREADS = 16
BIN_WIDTH = 0.5
NUM_BINS = 22
"""Scores are counted in bins from 0 to 11; the first and the last one take what lies beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceScores:
    """The scores of a piece in short: how many, their sum and range (0 for an empty piece), and how many in each bin."""

    piece: PieceRef
    num_vectors: int
    total: float
    least: float
    most: float
    bins: tuple[int, ...]
    was_done: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTask:
    """Pieces to look through. Light and picklable."""

    store: Store
    encoder: str
    pieces: tuple[PieceRef, ...]


def scores_folder(store: Store, encoder: str, corpus: str) -> str:
    """Folder of the scores that an encoder's vectors (its slug) have over one corpus."""
    return storage.join(store.root, "aesthetics", encoder, corpus)


def score_pieces(task: ScoreTask, head: AestheticHead) -> list[PieceScores]:
    """Score the pieces of a task that have no scores of this head and of the vectors as they are now.

    Raises:
        DataError: a table is broken.
    """
    return [_score_piece(task.store, task.encoder, piece, head) for piece in task.pieces]


def _score_piece(store: Store, encoder: str, piece: PieceRef, head: AestheticHead) -> PieceScores:
    vectors = storage.join(store.embeddings(encoder, piece.corpus), piece.name)
    uri = storage.join(scores_folder(store, encoder, piece.corpus), piece.name)
    made_of = {"head": head.sha256, "embeddings": read_marker(vectors + DONE)[0][0].sha256}
    if storage.exists(uri + DONE):
        _, facts = read_marker(uri + DONE)
        if facts.get("made_of") == made_of:
            return PieceScores(
                piece=piece, was_done=True, **{**facts["scores"], "bins": tuple(facts["scores"]["bins"])}
            )
    ids_N16, vectors_ND = read_embeddings(f"{vectors}.parquet")
    if vectors_ND.shape[1] != head.dim:
        raise DataError(
            f"expected vectors of {head.dim} numbers, found {vectors_ND.shape[1]} in {vectors}.parquet; run verify on the store"
        )
    scores_N = head.score(vectors_ND)
    if not np.isfinite(scores_N).all():
        raise DataError(
            f"expected finite vectors of unit length, found others in {vectors}.parquet; run verify on the store"
        )
    table = pa.Table.from_arrays([id_array(ids_N16), pa.array(scores_N, type=pa.float32())], schema=AESTHETICS)
    counts, _ = np.histogram(
        np.clip(scores_N, 0, NUM_BINS * BIN_WIDTH), bins=np.arange(NUM_BINS + 1, dtype=np.float64) * BIN_WIDTH
    )
    scores: dict[str, Any] = {
        "num_vectors": len(scores_N),
        "total": float(scores_N.sum(dtype=np.float64)),
        "least": float(scores_N.min()) if len(scores_N) else 0.0,
        "most": float(scores_N.max()) if len(scores_N) else 0.0,
        "bins": counts.tolist(),
    }
    write_marker(uri + DONE, files=[write_table(store, f"{uri}.parquet", table)], made_of=made_of, scores=scores)
    return PieceScores(piece=piece, **{**scores, "bins": tuple(scores["bins"])})


def kept_keys(
    store: Store, encoder: str, pieces: Iterable[PieceRef], *, min_score: float
) -> Iterator[tuple[PieceRef, NDArray[np.bytes_]]]:
    """Yield each piece with the images of it that have at least the score: sorted, distinct keys (see store.id_keys).

    Args:
        store: Holds the scores.
        encoder: Slug of the encoder whose vectors were scored.
        pieces: Committed pieces, in the order in which they are to come.
        min_score: The least score that is kept.

    Raises:
        DataError: a piece has no scores, or those of another head than the first one's.
    """
    for piece, keys_N, scores_N in _read_scores(store, encoder, pieces):
        yield piece, np.unique(keys_N[scores_N >= min_score])


def left_out_keys(
    store: Store, encoder: str, pieces: Sequence[PieceRef], *, min_score: float, session: Session
) -> NDArray[np.bytes_]:
    """The images of some pieces that have less than the score somewhere: sorted, distinct keys, 16 bytes each in memory.

    Raises:
        DataError: a piece has no scores, or the pieces of a task those of different heads.
    """
    parts = list(session.run_tasks(_below, score_tasks(store, encoder, pieces), shared=[session.share(min_score)]))
    return np.unique(np.concatenate([np.empty(0, dtype="S16"), *parts]))


def _below(task: ScoreTask, min_score: float) -> NDArray[np.bytes_]:
    found = [
        keys_N[scores_N < min_score] for _, keys_N, scores_N in _read_scores(task.store, task.encoder, task.pieces)
    ]
    return np.unique(np.concatenate([np.empty(0, dtype="S16"), *found]))


def _read_scores(
    store: Store, encoder: str, pieces: Iterable[PieceRef]
) -> Iterator[tuple[PieceRef, NDArray[np.bytes_], NDArray[np.float32]]]:
    def read(piece: PieceRef) -> tuple[str, NDArray[np.bytes_], NDArray[np.float32]]:
        uri = storage.join(scores_folder(store, encoder, piece.corpus), piece.name)
        if not storage.exists(uri + DONE):
            raise DataError(
                f"expected aesthetic scores at {uri}.parquet, found none; run jobs/ingest.py score on this store first"
            )
        _, facts = read_marker(uri + DONE)
        table = read_table(f"{uri}.parquet")
        return facts["made_of"]["head"], id_keys(id_matrix(table.column("image_id"))), table.column("score").to_numpy()

    ordered = list(pieces)
    first: str | None = None
    with reading_threads(NUM_READING_THREADS) as pool:
        for begin in range(0, len(ordered), PIECES_PER_TASK):
            window = ordered[begin : begin + PIECES_PER_TASK]
            for piece, (head, keys_N, scores_N) in zip(window, pool.map(read, window), strict=True):
                first = first or head
                if head != first:
                    raise DataError(
                        f"expected scores of one head, found those of two in {scores_folder(store, encoder, piece.corpus)} ({piece.name}); "
                        f"run jobs/ingest.py score on this store again, it scores them all with one"
                    )
                yield piece, keys_N, scores_N


def score_tasks(store: Store, encoder: str, pieces: Sequence[PieceRef]) -> list[ScoreTask]:
    """Pieces in their order, PIECES_PER_TASK to a task."""
    return [
        ScoreTask(store=store, encoder=encoder, pieces=tuple(pieces[first : first + PIECES_PER_TASK]))
        for first in range(0, len(pieces), PIECES_PER_TASK)
    ]
