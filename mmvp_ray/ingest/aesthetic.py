"""Aesthetic scores of images from their stored CLIP vectors, as a job: no image is read, no encoder runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from mmvp_ray import retries, storage
from mmvp_ray.cluster import Session
from mmvp_ray.encoders.aesthetic_head import AestheticHead, load_aesthetic_head
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest.aesthetic_scores import (
    BIN_WIDTH,
    NUM_BINS,
    PieceScores,
    kept_keys,
    left_out_keys,
    score_pieces,
    score_tasks,
    scores_folder,
)
from mmvp_ray.store import PieceRef, Store, done_names, is_applied, key_bytes, open_store, read_record

__all__ = [
    "AestheticConfig",
    "AestheticSummary",
    "PieceScores",
    "choose_encoder",
    "kept_keys",
    "left_out_keys",
    "score_images",
    "scored_pieces",
    "scores_folder",
]

# Shapes: M images.

HEAD_OF = "OpenAI's CLIP ViT-L/14"
_OPENAI_LABELS = ("ViT-L-14-quickgelu-", "clip-1024x24-patch14-")
"""How slugs of OpenAI's ViT-L/14 begin, loaded by open_clip and by transformers. Other weights of the same shape begin so too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticConfig:
    """Aesthetic scores for the images of a store, from their stored CLIP vectors."""

    store: str | None = None
    """Folder (path or URL) of the store whose vectors are scored and which takes the scores."""
    head: str | None = None
    """File (path or URL) of LAION's linear head for CLIP ViT-L/14: sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor, or the same as safetensors."""
    encoder: str | None = None
    """Whose vectors: a folder of STORE/embeddings or its beginning, or an encoder's name such as open_clip:ViT-L-14/openai; may be left out where there is one only."""
    corpus: tuple[str, ...] = ()
    """Names of the corpora to score; all that have vectors unless given. Repeat it for several."""
    min_score: float | None = None
    """Count the images below this score."""
    deny_list: str | None = None
    """Write the ids of the images below --min-score to this file (path or URL), 32 hex digits in a line, sorted."""
    address: str | None = None
    """A running Ray cluster to use; a cluster of its own on this machine unless given or RAY_ADDRESS is set."""

    def check(self) -> None:
        """Raise ConfigError for what is missing, before anything is opened."""
        if self.store is None:
            raise ConfigError("expected a store, found none; give --store runs/laion/store")
        if self.head is None:
            raise ConfigError(
                "expected the file of an aesthetic head, found none; give --head sa_0_4_vit_l_14_linear.pth (LAION-AI/aesthetic-predictor)"
            )
        if self.deny_list is not None and self.min_score is None:
            raise ConfigError(
                "expected --min-score beside --deny-list, found none; give the least score of images to keep"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AestheticSummary:
    """What a scoring did: pieces, vectors, the distribution of their scores, and the images below the least score asked for."""

    encoder: str
    head_sha256: str
    num_pieces: int
    num_done_earlier: int
    num_vectors: int
    mean: float
    least: float
    most: float
    bins: tuple[int, ...]
    min_score: float | None = None
    num_below: int | None = None
    deny_list: str | None = None

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = [
            f"{self.num_vectors:,} vectors of {self.encoder} scored in {self.num_pieces:,} pieces ({self.num_done_earlier:,} done earlier): "
            f"mean {self.mean:.2f}, from {self.least:.2f} to {self.most:.2f}"
        ]
        above = np.cumsum(self.bins[::-1])[::-1]
        shown = [
            f"{bin_ * BIN_WIDTH:.1f}: {above[bin_] / self.num_vectors:.1%}"
            for bin_ in range(1, NUM_BINS)
            if 0 < above[bin_] < self.num_vectors
        ]
        if shown:
            lines.append("share at or above a score of " + ", ".join(shown))
        if not is_heads_encoder(self.encoder):
            lines.append(
                f"note: the head was trained on vectors of {HEAD_OF}; what it says of {self.encoder} means nothing unless that encoder is one"
            )
        if self.num_below is not None:
            where = "" if self.deny_list is None else f"; their ids are in {self.deny_list}"
            lines.append(f"{self.num_below:,} images are below {self.min_score:g}{where}")
        return lines


def is_heads_encoder(encoder: str) -> bool:
    """False where a slug shows that the vectors are not those of OpenAI's ViT-L/14; other weights of that shape cannot be told apart."""
    return encoder.startswith(_OPENAI_LABELS)


def score_images(
    config: AestheticConfig, session: Session, on_piece: Callable[[PieceScores], None] = lambda scores: None
) -> AestheticSummary:
    """Score every stored vector that has no score of this head yet; killed and called again, it goes on where it stopped.

    Args:
        config: The store, the head, the encoder.
        session: Where tasks run.
        on_piece: Called for every piece, those scored earlier included, in no particular order.

    Raises:
        ConfigError: no such store, head, encoder or corpus, or the head takes vectors of another length. DataError: a table is broken, or
            the store has a takedown that is not finished.
    """
    config.check()
    assert config.store is not None and config.head is not None
    store = open_store(config.store, create=False)
    if read_record(store).rows and not is_applied(store):
        raise DataError(
            f"expected a finished takedown, found one without {store.takedown_marker}; run a takedown or mining job on this store, it finishes it"
        )
    encoder = choose_encoder(store, config.encoder)
    pieces = scored_pieces(store, encoder, config.corpus)
    head = load_aesthetic_head(config.head)
    dim = _dim(store, encoder, pieces[0])
    if dim != head.dim:
        raise ConfigError(
            f"expected vectors of {head.dim} numbers for the head {config.head}, found {dim} in {encoder}; the head belongs to {HEAD_OF}: choose "
            f"another --encoder"
        )
    tasks = score_tasks(store, encoder, pieces)
    results: list[PieceScores] = []
    for batch in session.run_tasks(score_pieces, tasks, shared=[session.share(head)]):
        for scores in batch:
            results.append(scores)
            on_piece(scores)
    num_below = None
    if config.min_score is not None:
        below_M = left_out_keys(store, encoder, pieces, min_score=config.min_score, session=session)
        num_below = len(below_M)
        if config.deny_list is not None:
            text = "".join(f"{key.hex()}\n" for key in key_bytes(below_M))
            storage.write_bytes(storage.normalise(config.deny_list), text.encode())
    return _summarise(config, encoder, head, results, num_below)


def choose_encoder(store: Store, name: str | None) -> str:
    """The slug of the encoder whose vectors are meant.

    Args:
        store: Holds the vectors.
        name: A slug or its beginning, or an encoder's name as --near takes it, whose weights must be at hand; None means the only one.

    Raises:
        ConfigError: none of the store's encoders is meant, or several are.
    """
    slugs = storage.list_folders(storage.join(store.root, "embeddings"))
    if name in slugs:
        return name
    fitting = [slug for slug in slugs if name is None or slug.startswith(name)]
    if not fitting and name is not None and ":" in name and slugs:
        from mmvp_ray.encoders import resolve_encoder
        from mmvp_ray.encoders.spec import DTYPES

        # A device whose every dtype can be named; nothing is loaded onto it.
        found = {resolve_encoder(name, device="cuda", dtype=dtype).slug for dtype in DTYPES}
        fitting = [slug for slug in slugs if slug in found]
    if len(fitting) != 1:
        raise ConfigError(
            f"expected one encoder with vectors in {store.root}, found {', '.join(fitting) or 'none'} for {name or 'no --encoder'}; give --encoder out "
            f"of {', '.join(slugs) or '(none: mine the store first)'}"
        )
    return fitting[0]


def scored_pieces(store: Store, encoder: str, corpora: Sequence[str] = ()) -> list[PieceRef]:
    """The pieces that have vectors of an encoder, sorted by corpus and name.

    Raises:
        ConfigError: a corpus has none, or there are none at all.
    """
    known = storage.list_folders(storage.join(store.root, "embeddings", encoder))
    unknown = [corpus for corpus in corpora if corpus not in known]
    pieces = [
        PieceRef(corpus, name)
        for corpus in sorted(set(corpora) or known)
        if corpus not in unknown
        for name in done_names(store.embeddings(encoder, corpus))
    ]
    if unknown or not pieces:
        raise ConfigError(
            f"expected vectors of {encoder} over {', '.join(corpora) or 'some corpus'} in {store.root}, found none over "
            f"{', '.join(unknown) or 'any'}; corpora with vectors: {', '.join(known) or 'none'}"
        )
    return pieces


def _dim(store: Store, encoder: str, piece: PieceRef) -> int:
    uri = storage.join(store.embeddings(encoder, piece.corpus), f"{piece.name}.parquet")

    def read() -> int:
        system, path = storage.file_system(uri)
        with system.open(path, "rb") as file, pq.ParquetFile(file) as parquet:
            return int(parquet.schema_arrow.field("vector").type.list_size)

    return retries.with_retries("reading", uri, read)


def _summarise(
    config: AestheticConfig, encoder: str, head: AestheticHead, results: Sequence[PieceScores], num_below: int | None
) -> AestheticSummary:
    # In one order, so that the sum of the scores is the same whoever came first.
    some = sorted((scores for scores in results if scores.num_vectors), key=lambda scores: scores.piece)
    num_vectors = sum(scores.num_vectors for scores in some)
    return AestheticSummary(
        encoder=encoder,
        head_sha256=head.sha256,
        num_pieces=len(results),
        num_done_earlier=sum(scores.was_done for scores in results),
        num_vectors=num_vectors,
        mean=sum(scores.total for scores in some) / max(1, num_vectors),
        least=min((scores.least for scores in some), default=0.0),
        most=max((scores.most for scores in some), default=0.0),
        bins=tuple(int(sum(scores.bins[bin_] for scores in some)) for bin_ in range(NUM_BINS)),
        min_score=config.min_score,
        num_below=num_below,
        deny_list=config.deny_list,
    )
