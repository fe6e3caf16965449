"""The prompts of a run, each once, with the ids of their images; images are read some prompts ahead, for a bucket answers slowly."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

from mmvp_ray.errors import DataError, TransientError
from mmvp_ray.evaluate.answer_parts import content_digest
from mmvp_ray.evaluate.image_payload import read_image
from mmvp_ray.evaluate.responder import Ask
from mmvp_ray.reading_threads import reading_threads

NUM_READING_THREADS = 16
NUM_AHEAD = 64
NUM_KNOWN_IMAGES = 1 << 16
UNREADABLE = "unreadable"
"""Stands for the id of an image that cannot be read: its prompt goes on, fails, and is another one when the image is back."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, and the ids of its images (image_id), in their order."""

    ask: Ask
    image_ids: tuple[str, ...]


def distinct_prompts(asks: Iterable[Ask]) -> Iterator[Prompt]:
    """Each prompt once, in the order of `asks`, which are drawn some ahead.

    Raises:
        DataError: two different prompts have one key. ConfigError: no permission to read an image.
    """
    seen: dict[str, str] = {}
    for prompt in _with_image_ids(asks):
        key, digest = prompt.ask.key, content_digest(prompt.ask, prompt.image_ids)[:16]
        if key not in seen:
            seen[key] = digest
            yield prompt
        elif seen[key] != digest:
            raise DataError(f"expected one prompt for each key, found two different ones for {key!r}")


def image_id(uri: str) -> str:
    """SHA-256 of the encoded image at `uri`, 64 hex digits; UNREADABLE if there is none.

    Raises:
        ConfigError: no permission.
    """
    try:
        return hashlib.sha256(read_image(uri)).hexdigest()
    except (DataError, TransientError):
        return UNREADABLE


def _with_image_ids(asks: Iterable[Ask]) -> Iterator[Prompt]:
    known = lru_cache(NUM_KNOWN_IMAGES)(image_id)
    ahead: deque[Future[Prompt]] = deque()
    with reading_threads(NUM_READING_THREADS) as pool:
        try:
            for ask in asks:
                ahead.append(pool.submit(lambda ask: Prompt(ask, tuple(known(uri) for uri in ask.image_uris)), ask))
                if len(ahead) >= NUM_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
