"""Labelled images against a zero-shot classifier: shards are read, decoded and embedded in batches, and only counts are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.encoders import EncoderSpec, TextEncoder
from mmvp_ray.errors import DataError
from mmvp_ray.evaluate.encode_task import Placement, ahead, chunks, loaded, torch_threads
from mmvp_ray.evaluate.item_vectors import read_vectors
from mmvp_ray.evaluate.prompt_ensembles import Classes, class_of, label_of, prompts_of
from mmvp_ray.images.decode import decode
from mmvp_ray.images.geometry import apply_geometry
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.sources import Sample, Shard, read_pieces

# Shapes: B images, C classes, P prompts of one class, D numbers in a vector, H x W pixels.

MAX_EXAMPLES = 5
TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierJob:
    """Prompts to embed with one encoder, and the file for the classifier."""

    spec: EncoderSpec
    placement: Placement
    classes: Classes
    templates: tuple[str, ...]
    to: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesJob:
    """Shards to classify with one encoder, and the file for the counts."""

    spec: EncoderSpec
    placement: Placement
    classes: Classes
    label_field: str | None
    shards: tuple[Shard, ...]
    classifier: str
    to: str


@dataclass(slots=True)
class Counts:
    """What came of some images; sums of several are sums of the fields."""

    num_images: int = 0
    num_top1: int = 0
    num_top5: int = 0
    num_unreadable: int = 0
    num_unlabelled: int = 0
    examples: tuple[str, ...] = ()

    def add(self, other: Counts) -> None:
        """Count another's images as well."""
        self.num_images += other.num_images
        self.num_top1 += other.num_top1
        self.num_top5 += other.num_top5
        self.num_unreadable += other.num_unreadable
        self.num_unlabelled += other.num_unlabelled
        self.examples = (*self.examples, *other.examples)[:MAX_EXAMPLES]


def build_classifier(encoder: TextEncoder, prompts: Sequence[Sequence[str]], batch_size: int) -> NDArray[np.float32]:
    """One unit vector for each class: the mean of its prompts' unit vectors, scaled to unit length (Radford et al. 2021, section 3.1.4).

    Args:
        encoder: Of the CLIP family.
        prompts: The prompts of each class.
        batch_size: Prompts in a batch; classes are not cut at batches' ends.

    Returns:
        (C, D) float32.
    """
    import torch

    rows: list[torch.Tensor] = []
    flat = [prompt for of_class in prompts for prompt in of_class]
    embedded = (encoder.embed_texts(list(batch)) for batch in chunks(flat, batch_size))
    held: list[torch.Tensor] = []
    for of_class in prompts:
        while sum(len(part) for part in held) < len(of_class):
            emb_BD = next(embedded).float()
            held.append(emb_BD / torch.linalg.vector_norm(emb_BD, dim=1, keepdim=True))
        joined_BD = torch.cat(held)
        mean_D = joined_BD[: len(of_class)].mean(dim=0)
        held = [joined_BD[len(of_class) :]]
        rows.append(mean_D / torch.linalg.vector_norm(mean_D))
    classifier_CD: NDArray[np.float32] = torch.stack(rows).cpu().numpy()
    return classifier_CD


def ranks(scores_BC: NDArray[np.float32], rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many classes go before the right one, (B,): those with a higher score, and of equal ones those with a lower index (argmax's)."""
    own_B1 = np.take_along_axis(scores_BC, rows_B[:, None], axis=1)
    before_BC = (scores_BC > own_B1) | (
        (scores_BC == own_B1) & (np.arange(scores_BC.shape[1])[None, :] < rows_B[:, None])
    )
    num_before_B: NDArray[np.int64] = before_BC.sum(axis=1, dtype=np.int64)
    return num_before_B


def classify(job: ImagesJob) -> tuple[str, int]:
    """The task: classify the images of a job's shards and write the counts; the encoder's slug and the number of images come back."""
    import torch

    classifier_CD = read_vectors(job.classifier).of(job.classes.ids)
    counts = Counts()
    with torch_threads(job.placement.num_threads):
        encoder = loaded(job.spec, job.placement.device)
        weights_CD = torch.from_numpy(classifier_CD).to(job.placement.device)
        found = labelled_pixels(job, counts)
        while batch := list(islice(found, job.placement.batch_size)):
            emb_BD = encoder.embed(torch.from_numpy(np.stack([pixels for pixels, _, _ in batch]))).float()
            emb_BD = emb_BD / torch.linalg.vector_norm(emb_BD, dim=1, keepdim=True)
            scores_BC = (emb_BD @ weights_CD.T).cpu().numpy()
            usable_B = np.isfinite(scores_BC).all(axis=1)
            for i in np.flatnonzero(~usable_B).tolist():
                counts.add(Counts(num_unreadable=1, examples=(f"{batch[i][2]}: no finite vector",)))
            rank_B = ranks(scores_BC[usable_B], np.array([row for _, row, _ in batch], dtype=np.int64)[usable_B])
            counts.add(
                Counts(num_images=len(rank_B), num_top1=int((rank_B == 0).sum()), num_top5=int((rank_B < TOP).sum()))
            )
    storage.write_json(
        job.to,
        {
            "encoder": job.spec.name,
            "num_images": counts.num_images,
            "num_top1": counts.num_top1,
            "num_top5": counts.num_top5,
            "num_unreadable": counts.num_unreadable,
            "num_unlabelled": counts.num_unlabelled,
            "examples": list(counts.examples),
        },
    )
    return job.spec.slug, counts.num_images


def classifier_rows(job: ClassifierJob) -> NDArray[np.float32]:
    """The classifier of a job, computed on its device."""
    with torch_threads(job.placement.num_threads):
        encoder = loaded(job.spec, job.placement.device)
        assert isinstance(encoder, TextEncoder)
        prompts = [prompts_of(names, job.templates) for names in job.classes.names]
        return build_classifier(encoder, prompts, job.placement.batch_size)


def labelled_pixels(job: ImagesJob, counts: Counts) -> Iterator[tuple[NDArray[np.uint8], int, str]]:
    """Yield pixels, class and name of every labelled image that can be read; the others are counted, a few by name."""

    def one(sample: Sample) -> NDArray[np.uint8] | str:
        try:
            found = decode(sample.load())
        except DataError as error:
            return str(error)
        if isinstance(found, Rejected):
            return f"{found.reason}: {found.detail}"
        return apply_geometry(found, job.spec.geometry)

    def samples() -> Iterator[Sample]:
        for shard in job.shards:
            for piece in read_pieces(shard):
                for reject in piece.rejects:
                    text = f"{reject.uri} {reject.member}: {reject.reason}"
                    counts.add(Counts(num_unreadable=1, examples=(text,)))
                yield from piece.samples

    for sample, pixels in ahead(one, samples(), job.placement.num_threads):
        where = f"{sample.uri} {sample.member}"
        row = class_of(sample, job.classes, job.label_field)
        if isinstance(pixels, str):
            counts.add(Counts(num_unreadable=1, examples=(f"{where}: {pixels}",)))
        elif row is None:
            label = label_of(sample, job.label_field)
            text = f"{where}: label {label!r} names no class"
            counts.add(Counts(num_unlabelled=1, examples=(text,)))
        else:
            yield pixels, row, where


def labels_in(item: tuple[tuple[Shard, ...], str | None]) -> list[str]:
    """The task: the different labels in some shards."""
    shards, label_field = item
    found = {
        label_of(sample, label_field) for shard in shards for piece in read_pieces(shard) for sample in piece.samples
    }
    return sorted(label for label in found if label is not None)
