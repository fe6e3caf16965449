"""The micro-batches of a rank by number: fetched, decoded and collated by whoever asks, in the order that mof.data.order names."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.mof.data.collate import Batch, CollateConfig, Collator
from mmvp_ray.mof.data.image_places import ArchiveImages, FolderImages, ImageSource
from mmvp_ray.mof.data.images import ImageLoader, MissingConfig, kept_rows, load_all
from mmvp_ray.mof.data.order import OrderConfig, SampleOrder
from mmvp_ray.mof.data.rows import Rows, load_rows
from mmvp_ray.mof.training.config import TrainConfig

if TYPE_CHECKING:
    from mmvp_ray.mof.processor import MoFProcessor

# Shapes: N rows of the data set, K of them kept.


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Feed:
    """Which micro-batches there are; light but for `rows`, which processes of one node share.

    Attributes:
        rows: The data set.
        kept_K: Numbers of the rows that have their images.
        images: Folder or URL of the images, or an index of archives.
        order: How rows become batches.
        collate: How samples become tensors.
        missing: What happens to images that are missing or broken after all.
        num_epochs: Times the rows are gone through.
        max_steps: End behind so many steps.
        num_micro_batches: Of each rank and step.
    """

    rows: Rows
    kept_K: NDArray[np.int64]
    images: str
    order: OrderConfig
    collate: CollateConfig
    missing: MissingConfig
    num_epochs: int
    max_steps: int | None
    num_micro_batches: int

    def sample_order(self) -> SampleOrder:
        """The order of the kept rows.

        Raises:
            ConfigError: too few rows for one batch.
        """
        return SampleOrder(self.rows.num_words_N[self.kept_K], self.rows.num_images_N[self.kept_K], self.order)

    def num_steps(self) -> int:
        """Steps of the whole stage."""
        total = self.num_epochs * self.sample_order().num_steps
        return total if self.max_steps is None else min(total, self.max_steps)


def feed_for(config: TrainConfig, *, num_micro_batches: int, rows: Rows | None = None) -> Feed:
    """The micro-batches of a stage, once its rows and the names of its images have been looked through.

    Args:
        config: The stage.
        num_micro_batches: Of each rank and step.
        rows: Those of `config`, if they are loaded.

    Raises:
        ConfigError: no rows, no images, or too few rows for one batch. DataError: rows that do not read, or too many images missing.
    """
    assert config.rows is not None
    assert config.images is not None
    rows = load_rows(config.rows) if rows is None else rows
    images = storage.normalise(config.images)
    found = Feed(
        rows=rows,
        kept_K=kept_rows(rows, image_source(images), config.missing),
        images=images,
        order=config.order,
        collate=collate_for(config, rows),
        missing=config.missing,
        num_epochs=config.num_epochs,
        max_steps=config.max_steps,
        num_micro_batches=num_micro_batches,
    )
    found.sample_order()
    return found


def collate_for(config: TrainConfig, rows: Rows) -> CollateConfig:
    """How samples become tensors: with the template that the rows were converted for."""
    return dataclasses.replace(config.collate, template=rows.template)


class BatchMaker:
    """Makes a rank's micro-batches, each from its number alone: micro-batch m of step s has the number s * num_micro_batches + m.

    Args:
        feed: Which there are.
        processor: The model's.
        rank: From 0.
        world_size: Ranks.
    """

    def __init__(self, feed: Feed, processor: MoFProcessor, *, rank: int, world_size: int) -> None:
        self._feed = feed
        self._order = feed.sample_order()
        self._rank, self._world_size = rank, world_size
        self._collate = Collator(processor, feed.collate)
        num_with_images = int((feed.rows.num_images_N > 0).sum())
        self._loader = ImageLoader(image_source(feed.images), feed.missing, num_rows=num_with_images)

    def make(self, number: int) -> Batch:
        """The micro-batch of a number; `counts` of it has the images that were missing too.

        Raises:
            DataError: more rows without their image than may be. TransientError: the store stayed unwell.
        """
        step, micro = divmod(number, self._feed.num_micro_batches)
        epoch, step_in_epoch = divmod(step, self._order.num_steps)
        parts = self._order.micro_batches(
            epoch,
            step_in_epoch,
            rank=self._rank,
            world_size=self._world_size,
            num_micro_batches=self._feed.num_micro_batches,
        )
        before = Counter(self._loader.counts)
        samples = load_all(self._feed.rows.at(self._feed.kept_K[parts[micro]]), self._loader)
        batch = self._collate(samples)
        batch.counts.update({f"image_{reason}": count for reason, count in (self._loader.counts - before).items()})
        return batch


def image_source(images: str) -> ImageSource:
    """The place of images that a config names: an index of archives, or a folder.

    Raises:
        ConfigError: there is neither.
    """
    return ArchiveImages(images) if images.endswith(".parquet") else FolderImages(images)


def to_columns(batches: Sequence[Batch]) -> dict[str, list[Any]]:
    """Batches as columns of a table, tensors as safetensors."""
    from safetensors.torch import save

    return {
        "tensors": [save({name: value.contiguous() for name, value in batch.inputs.items()}) for batch in batches],
        "rest": [
            json.dumps({"rows": batch.rows, "counts": batch.counts, "num_label_tokens": batch.num_label_tokens})
            for batch in batches
        ],
    }


def from_columns(tensors: bytes, rest: str) -> Batch:
    """The batch that `to_columns` wrote."""
    from safetensors.torch import load

    found = json.loads(rest)
    return Batch(
        inputs=load(tensors),
        rows=tuple(found["rows"]),
        counts=Counter(found["counts"]),
        num_label_tokens=found["num_label_tokens"],
    )
