"""A benchmark's images and texts become vectors of an encoder: one task for each encoder, results kept in files that a later run finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.config import fingerprint
from mmvp_ray.encoders import EncoderSpec, resolve_encoder
from mmvp_ray.errors import ConfigError, ResourceError
from mmvp_ray.evaluate.encode_task import EncodeJob, Placement, encode
from mmvp_ray.evaluate.item_vectors import Vectors, read_vectors
from mmvp_ray.schema import IMAGE_ID_BYTES

DEFAULT_BATCH_SIZE = {"cuda": 256, "cpu": 32}


@dataclass(frozen=True, slots=True)
class EncodedItems:
    """One encoder's vectors: images by image id in hex, texts by themselves."""

    images: Vectors
    texts: Vectors


def resolve_all(
    names: Sequence[str], *, device: str, dtype: str | None, trust_remote_code: bool, texts: bool
) -> list[EncoderSpec]:
    """Resolve the encoders before anything runs.

    Args:
        names: Spec strings, see docs/encoders.md.
        device: "cuda" or "cpu".
        dtype: As in `resolve_encoder`.
        trust_remote_code: Whether code that came with the weights may run.
        texts: Whether they must embed texts.

    Raises:
        ConfigError: an encoder cannot be resolved, has no text tower, or two names mean the same encoder.
    """
    specs = [resolve_encoder(name, device=device, dtype=dtype, trust_remote_code=trust_remote_code) for name in names]
    seen: dict[str, str] = {}
    for spec in specs:
        if texts and spec.family != "clip":
            raise ConfigError(
                f"expected encoders with a text tower, found {spec.name!r}, which sees images only; name one of the CLIP family"
            )
        if spec.fingerprint in seen:
            raise ConfigError(
                f"expected different encoders, found {seen[spec.fingerprint]!r} and {spec.name!r}, which are the same; leave one out"
            )
        seen[spec.fingerprint] = spec.name
    return specs


def choose_placement(
    session: Session, *, device: str, batch_size: int | None, num_threads: int, gpus_per_task: float
) -> Placement:
    """Where encoders run; `device` may be "auto".

    Raises:
        ResourceError: a GPU is asked for and there is none.
    """
    if device != "cpu":
        if session.joins_cluster:
            has_gpu, where = session.resources().num_gpus > 0, "the cluster"
        else:
            import torch

            has_gpu, where = torch.cuda.is_available(), "this machine"
        if device == "cuda" and not has_gpu:
            raise ResourceError(
                f"expected a GPU for --device cuda, found none in {where}; use --device cpu, or a machine with a GPU"
            )
        device = "cuda" if has_gpu else "cpu"
    return Placement(
        device=device,
        num_threads=num_threads,
        batch_size=batch_size or DEFAULT_BATCH_SIZE[device],
        num_gpus=gpus_per_task if device == "cuda" else 0.0,
    )


def image_ids(benchmark: Benchmark) -> dict[str, str]:
    """Image ids in hex (the first 16 bytes of the SHA-256) of a benchmark's images, by uri."""
    return {item.image_uri: benchmark.image_sha256[item.image_uri][: 2 * IMAGE_ID_BYTES] for item in benchmark.items}


def encode_items(
    session: Session,
    specs: Sequence[EncoderSpec],
    placement: Placement,
    *,
    image_ids: Mapping[str, str],
    texts: Sequence[str],
    out: str,
) -> Iterator[EncoderSpec]:
    """Encode what is missing in `out`, one task for each encoder, and yield each encoder once its files are there.

    The files' names hold the encoder's fingerprint and that of the images (texts), so that another encoder or benchmark has others.

    Args:
        session: Where tasks run.
        specs: Encoders; those with texts are of the CLIP family.
        placement: Where they run.
        image_ids: From `image_ids`: ids in hex by uri.
        texts: Texts to embed as they are; may be empty.
        out: Folder of the run.

    Raises:
        DataError: an image cannot be decoded, changed meanwhile, or gives no finite vector; the message names it.
    """
    first_uri = {identity: uri for uri, identity in reversed(list(image_ids.items()))}
    ids = tuple(sorted(first_uri))
    by_slug = {spec.slug: spec for spec in specs}
    jobs: list[EncodeJob] = []
    for spec in specs:
        images_to, texts_to = _files(out, spec, ids, texts)
        job = EncodeJob(
            spec=spec,
            placement=placement,
            image_uris=tuple(first_uri[identity] for identity in ids),
            image_ids=ids,
            texts=tuple(dict.fromkeys(texts)),
            images_to=None if storage.exists(images_to) else images_to,
            texts_to=texts_to if texts and not storage.exists(texts_to) else None,
        )
        if job.images_to or job.texts_to:
            jobs.append(job)
        else:
            yield spec
    for slug in session.run_tasks(encode, jobs, num_cpus=task_cpus(session, placement), num_gpus=placement.num_gpus):
        yield by_slug[slug]


def task_cpus(session: Session, placement: Placement) -> float:
    """CPUs that a task asks for: as many as its threads, never more than the smallest node has."""
    if isinstance(session, Inline):
        return 1.0
    return min(float(placement.num_threads), session.resources().smallest_node_cpus)


def load_items(spec: EncoderSpec, *, image_ids: Mapping[str, str], texts: Sequence[str], out: str) -> EncodedItems:
    """Read what `encode_items` wrote.

    Raises:
        DataError: a file is missing or broken.
    """
    images_from, texts_from = _files(out, spec, tuple(sorted(set(image_ids.values()))), texts)
    empty = Vectors({}, np.empty((0, spec.dim), dtype=np.float32))
    return EncodedItems(read_vectors(images_from), read_vectors(texts_from) if texts else empty)


def _files(out: str, spec: EncoderSpec, ids: tuple[str, ...], texts: Sequence[str]) -> tuple[str, str]:
    folder = storage.join(out, "vectors", spec.slug)
    return (
        storage.join(folder, f"images-{fingerprint(list(ids))}.parquet"),
        storage.join(folder, f"texts-{fingerprint(sorted(set(texts)))}.parquet"),
    )
