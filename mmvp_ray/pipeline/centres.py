"""The centre of a corpus in an encoder's space: the mean of random images' vectors, bit-equal everywhere, kept in the manifest."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import RuleConfig
from mmvp_ray.search import Census, Space
from mmvp_ray.search.gather import gather_vectors
from mmvp_ray.store import Store

NUM_IMAGES = 32_768
"""Images that the mean is taken over: its error is below 0.006 of the spread."""


def settle_space(store: Store, census: Census, spec: EncoderSpec, config: RuleConfig, *, session: Session) -> Space:
    """The space in which an encoder's cosines are measured: as stored, or centred.

    Args:
        store: Holds the vectors.
        census: The distinct images, with their draw.
        spec: The encoder.
        config: Whether to centre, and on what.
        session: Where tasks run.

    Raises:
        ConfigError: the run whose centres are asked for has none for this encoder.
    """
    if config.centre_of is not None:
        return Space(spec.slug, spec.dim, _centre_of(config.centre_of, spec))
    if not config.centred:
        return Space(spec.slug, spec.dim)
    drawn = census.draw.slice(0, NUM_IMAGES)
    pieces = [census.pieces[piece] for piece in np.unique(drawn.piece_S)]
    vectors_SD = gather_vectors(store, Space(spec.slug, spec.dim), pieces, drawn.ids_S16, session=session)
    vectors_SD = vectors_SD[np.isfinite(vectors_SD).all(axis=1)]
    # Sums of fp16 numbers in float64 are exact, so that their order does not matter.
    centre_D = vectors_SD.sum(axis=0, dtype=np.float64) / max(1, len(vectors_SD))
    return Space(spec.slug, spec.dim, centre_D.astype(np.float16).tobytes())


def centre_text(space: Space) -> str | None:
    """The centre as the manifest holds it: base64 of fp16 numbers; None without."""
    return None if space.centre is None else base64.b64encode(space.centre).decode()


def _centre_of(url: str, spec: EncoderSpec) -> bytes:
    uri = storage.join(storage.normalise(url), "manifest.json")
    manifest: dict[str, Any] = storage.read_json(uri) if storage.exists(uri) else {}
    text = manifest.get("centres", {}).get(spec.slug)
    if text is None:
        raise ConfigError(
            f"expected the centre of {spec.name} in the manifest of a run with --centred, found none in {uri}; use --centred alone for a centre of this corpus"
        )
    return base64.b64decode(text)
