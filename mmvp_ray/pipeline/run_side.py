"""A run as a comparison sees it: its report, its blind pairs, and of a few images the places and the cosines from its vectors."""

from __future__ import annotations

import base64
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.errors import DataError
from mmvp_ray.pipeline.changes import Changes, Side
from mmvp_ray.pipeline.places import first_places
from mmvp_ray.pipeline.results import PIECES_FILE, REPORT_JSON, blind_folder
from mmvp_ray.pipeline.run import Run
from mmvp_ray.report.data import EncoderCard, MiningReport
from mmvp_ray.search import PieceRef, Space, load_vectors
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.store import open_store, read_table

# Shapes: N rows of an images table, M images, P pairs, D numbers in a vector.

log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunSide:
    """A finished run, opened.

    Attributes:
        run: The run.
        report: What its report.json says.
        side: Its blind pairs, and where its images are listed.
        places: The first row of the images tables of each image that was looked up and that the run has.
        piece_of: The piece of that row.
    """

    run: Run
    report: MiningReport = field(init=False)
    side: Side = field(init=False)
    places: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    piece_of: dict[bytes, PieceRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        url = self.run.url
        self.report = MiningReport.from_json(storage.read_bytes(storage.join(url, REPORT_JSON)).decode())
        listed = read_table(storage.join(url, PIECES_FILE))
        self.side = Side(
            folder=blind_folder(url, self.report.near.slug, self.report.far.slug),
            store=open_store(self.run.manifest["store"], create=False),
            pieces=[
                PieceRef(corpus, name)
                for corpus, name in zip(
                    listed.column("corpus").to_pylist(), listed.column("piece").to_pylist(), strict=True
                )
            ],
        )

    @property
    def min_aesthetic(self) -> float | None:
        """The aesthetic score below which images were left out; None if they were not."""
        found: float | None = self.run.manifest.get("config", {}).get("min_aesthetic")
        return found

    def centre(self, card: EncoderCard) -> str | None:
        """The centre of an encoder's vectors as the manifest holds it (pipeline/centres.py); None if they were not centred."""
        found: str | None = self.run.manifest.get("centres", {}).get(card.slug)
        return found

    def look_up(self, wanted: set[bytes], *, session: Session) -> None:
        """Find the first row of the images tables, and its piece, of each image (16 bytes) that the run has; others are passed over.

        Args:
            wanted: Ids.
            session: Where tasks run, if the run has many pieces and all nodes see them.

        Raises:
            DataError: an images table is missing or broken.
        """
        new = wanted - self.places.keys()
        where = None if storage.is_local(self.side.store.root) else session
        for key, (piece, row) in first_places(self.side.store, self.side.pieces, new, session=where).items():
            self.places[key], self.piece_of[key] = row, piece

    def cosines(self, card: EncoderCard, pairs: Changes) -> NDArray[np.float64]:
        """Cosines of some pairs in an encoder of this run, from its vectors; NaN where the store has none (any more)."""
        ids_a, ids_b = pairs.ids()
        keys = {row.tobytes() for ids in (ids_a, ids_b) for row in ids}
        pieces = sorted({self.piece_of[key] for key in keys if key in self.piece_of})
        centre = self.centre(card)
        space = Space(card.slug, card.dim, None if centre is None else base64.b64decode(centre))
        try:
            a_PD, b_PD = (load_vectors(self.side.store, space, pieces, ids) for ids in (ids_a, ids_b))
        except DataError as error:
            log.warning("examples without the cosines of %s in %s: %s", card.name, self.run.url, error)
            return np.full(len(pairs), np.nan)
        rows = np.arange(len(pairs))
        return exact_cosines(a_PD, b_PD, rows, rows)
