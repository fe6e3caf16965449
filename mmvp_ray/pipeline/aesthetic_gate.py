"""The aesthetic gate of a run: images whose stored score is too low take part in the join, and their pairs are passed over after it.

So near pairs in the store serve runs with any gate, and a gate costs nothing but reading the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.aesthetic import left_out_keys, scores_folder
from mmvp_ray.pipeline.near import NearSide
from mmvp_ray.report.data import FunnelStep, MiningReport
from mmvp_ray.store import PieceRef, Store, done_names


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AestheticGate:
    """Which images a run leaves out for their scores.

    Attributes:
        min_score: The least score that is kept; None keeps all.
        left_out_M: Keys (store.id_keys) of the distinct images with a lower one, sorted, (M,) S16.
    """

    min_score: float | None = None
    left_out_M: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, dtype="S16"))

    def on(self, side: NearSide) -> NearSide:
        """The near side without the pairs of images that are left out; its recall was audited with them."""
        if not len(self.left_out_M):
            return side
        without = np.union1d(side.table.without, self.left_out_M)
        return replace(side, table=replace(side.table, without=without))

    def shown(self, report: MiningReport) -> MiningReport:
        """The report with a step of its own in the funnel, after the images that were embedded."""
        if self.min_score is None:
            return report
        at = next(at for at, step in enumerate(report.funnel) if step.stage == "embedded")
        step = FunnelStep(
            stage="kept by score",
            count=report.funnel[at].count - len(self.left_out_M),
            unit="images",
            note=f"aesthetic score at least {self.min_score:g}",
        )
        return replace(report, funnel=[*report.funnel[: at + 1], step, *report.funnel[at + 1 :]])


def open_gate(store: Store, pieces: Sequence[PieceRef], min_score: float | None, *, session: Session) -> AestheticGate:
    """The gate of a run.

    Args:
        store: Holds the scores (jobs/ingest.py score).
        pieces: The run's pieces.
        min_score: The least score that is kept; None without a gate.
        session: Where the scores are read.

    Raises:
        ConfigError: a piece has no scores, or the vectors of several encoders were scored. DataError: a table is broken, or the scores are
            of several heads.
    """
    if min_score is None:
        return AestheticGate()
    folder = storage.join(store.root, "aesthetics")
    encoders = storage.list_folders(folder)
    if len(encoders) > 1:
        raise ConfigError(
            f"expected aesthetic scores of one encoder's vectors for --min-aesthetic, found those of {', '.join(encoders)} in {folder}; remove the "
            f"folders that are not meant"
        )
    scored = {
        PieceRef(corpus, name)
        for encoder in encoders
        for corpus in sorted({piece.corpus for piece in pieces})
        for name in done_names(scores_folder(store, encoder, corpus))
    }
    lacking = [piece for piece in pieces if piece not in scored]
    if lacking:
        raise ConfigError(
            f"expected an aesthetic score of every image for --min-aesthetic, found none in {len(lacking):,} of {len(pieces):,} pieces (the first is "
            f"{lacking[0].name} of {lacking[0].corpus}); run jobs/ingest.py score --store {store.root}, then this command again: the vectors are there"
        )
    left_out = left_out_keys(store, encoders[0], pieces, min_score=min_score, session=session) if pieces else None
    return (
        AestheticGate(min_score=min_score)
        if left_out is None
        else AestheticGate(min_score=min_score, left_out_M=left_out)
    )
