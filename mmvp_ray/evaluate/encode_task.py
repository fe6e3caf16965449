"""The task of one encoder: a benchmark's images and texts through decoding, geometry and model, in batches, into files of vectors."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.encoders import EncoderSpec, TextEncoder, load_encoder
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.evaluate.item_vectors import write_vectors
from mmvp_ray.images.decode import decode
from mmvp_ray.images.geometry import apply_geometry
from mmvp_ray.images.reasons import Rejected, one_line
from mmvp_ray.reading_threads import reading_threads
from mmvp_ray.sources.piece import image_id

if TYPE_CHECKING:
    from mmvp_ray.encoders import Encoder
    from mmvp_ray.images.geometry import Geometry

# Shapes: N distinct images or texts, B of them in a batch, C = 3 channels, H x W pixels, D numbers in a vector.

T = TypeVar("T")
R = TypeVar("R")

MIN_DECODE_THREADS = 4
ITEMS_AHEAD = 4
"""Decoded images that wait for the encoder, for each thread that decodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where encoders run.

    Attributes:
        device: "cuda" or "cpu".
        num_threads: CPU threads of one task: the encoder's on the CPU, and those that decode (four at least).
        batch_size: Images or texts in a batch.
        num_gpus: GPUs of one task, 0 on the CPU.
    """

    device: str
    num_threads: int
    batch_size: int
    num_gpus: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob:
    """What one task encodes, light and picklable.

    Attributes:
        spec: The encoder.
        placement: Where it runs.
        image_uris: One place for each distinct image.
        image_ids: Their ids in hex, in the same order: what the driver found there.
        texts: Distinct texts; empty for images alone.
        images_to: The file for the images' vectors; None if it is there.
        texts_to: The file for the texts' vectors; None if it is there.
    """

    spec: EncoderSpec
    placement: Placement
    image_uris: tuple[str, ...]
    image_ids: tuple[str, ...]
    texts: tuple[str, ...]
    images_to: str | None
    texts_to: str | None


def encode(job: EncodeJob) -> str:
    """The task: encode the images and texts of a job and write their files; the encoder's slug comes back.

    Raises:
        ResourceError: The GPU's memory is too small. DataError: an image is not there or cannot be used, or has no finite vector.
    """
    import torch

    with torch_threads(job.placement.num_threads), gpu_memory(job.spec, job.placement):
        encoder = loaded(job.spec, job.placement.device)
        if job.texts_to is not None:
            assert isinstance(encoder, TextEncoder)
            parts = [
                encoder.embed_texts(list(batch)).cpu().numpy() for batch in chunks(job.texts, job.placement.batch_size)
            ]
            write_vectors(job.texts_to, job.texts, _finite(job.spec, job.texts, parts))
        if job.images_to is not None:
            pixels = _pixels(job, job.spec.geometry)
            parts = []
            while batch := list(islice(pixels, job.placement.batch_size)):
                parts.append(encoder.embed(torch.from_numpy(np.stack(batch))).cpu().numpy())
            write_vectors(job.images_to, job.image_ids, _finite(job.spec, job.image_uris, parts))
    return job.spec.slug


def _pixels(job: EncodeJob, geometry: Geometry) -> Iterator[NDArray[np.uint8]]:
    """Pixels of the job's images in order; a few are decoded ahead, so that memory holds a batch and not the benchmark."""

    def one(uri: str, identity: str) -> NDArray[np.uint8]:
        data = _read(uri)
        if image_id(data).hex() != identity:
            raise DataError(f"expected the image at {uri} to stay as it was, found other bytes; start the run again")
        found = decode(data)
        if isinstance(found, Rejected):
            raise DataError(
                f"expected an image at {uri}, found one that cannot be read ({found.reason}: {found.detail}); replace it"
            )
        return apply_geometry(found, geometry)

    places = zip(job.image_uris, job.image_ids, strict=True)
    return (pixels for _, pixels in ahead(lambda place: one(*place), places, job.placement.num_threads))


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except DataError as error:
        raise DataError(f"expected an image at {uri}, found no file; the benchmark's folder is not complete") from error


def _finite(spec: EncoderSpec, names: Sequence[str], parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    vectors_ND = np.concatenate(parts)
    usable_N = np.isfinite(vectors_ND).all(axis=1) & (vectors_ND != 0).any(axis=1)
    if not usable_N.all():
        raise DataError(
            f"expected a finite vector of {spec.name}, found none for {names[int(np.argmin(usable_N))]!r} and {int((~usable_N).sum()) - 1} "
            "others; try --dtype float32"
        )
    return vectors_ND


_loaded: dict[tuple[str, str], Encoder] = {}


def loaded(spec: EncoderSpec, device: str) -> Encoder:
    """The encoder, loaded; the last one stays in the process for the next task, another takes its place."""
    key = (spec.fingerprint, device)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_encoder(spec, device=device)
    return _loaded[key]


@contextlib.contextmanager
def gpu_memory(spec: EncoderSpec, placement: Placement) -> Iterator[None]:
    """Load and run an encoder; too little GPU memory becomes a ResourceError that says what to change."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"encoder {spec.name!r} needs more GPU memory than there is for batches of {placement.batch_size} "
            f"({one_line(str(error), max_chars=200)}); use a smaller --batch-size, or fewer encoders on a GPU (--gpus-per-encoder)"
        ) from error


@contextlib.contextmanager
def torch_threads(num: int) -> Iterator[None]:
    """Run with so many CPU threads of torch, then with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ahead(work: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[tuple[T, R]]:
    """Yield every item with `work(item)`, in order, computed by threads a little ahead of whoever takes them."""
    num_threads = max(MIN_DECODE_THREADS, num_threads)
    waiting: deque[tuple[T, Future[R]]] = deque()
    with reading_threads(num_threads) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= ITEMS_AHEAD * num_threads:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()


def chunks(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size` values, in order."""
    return (values[first : first + size] for first in range(0, len(values), size))
