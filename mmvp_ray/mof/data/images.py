"""A row's images: fetched, decoded, and where one is missing or broken, the policy and its count."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.decode import decode
from mmvp_ray.images.reasons import Rejected, one_line
from mmvp_ray.mof.data.image_places import ImageSource
from mmvp_ray.mof.data.records import IMAGE_TOKEN, Row
from mmvp_ray.mof.data.rows import Rows

# Shapes: N rows of the data set, H x W pixels, C = 3 (RGB).


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingConfig:
    """What happens to rows whose image is missing or cannot be decoded."""

    missing: Literal["error", "drop", "text_only"] = "error"
    """error: stop; drop: leave the row out; text_only: keep its text, without <image> (a caption needs its image: not for template plain)."""
    max_missing_fraction: float = 0.01
    """Stop where a larger share of the rows with images lacks one, whatever --missing says."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        if self.missing not in ("error", "drop", "text_only"):
            raise ConfigError(f"expected --missing error, drop or text_only, found {self.missing!r}; choose one")
        if not 0 <= self.max_missing_fraction <= 1:
            raise ConfigError(
                f"expected --max-missing-fraction from 0 to 1, found {self.max_missing_fraction}; 0.01 is the default"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A row with its images, in their order: uint8 RGB, (H, W, C) each."""

    row: Row
    images_HWC: tuple[NDArray[np.uint8], ...]


def kept_rows(rows: Rows, source: ImageSource, config: MissingConfig) -> NDArray[np.int64]:
    """Numbers of the rows to train on, before training starts: only names are looked up.

    Make the order (mof.data.order) over these, so that batches stay full; images that turn out broken later are the business of `ImageLoader`.

    Returns:
        Ascending numbers; with policy text_only those of all rows.

    Raises:
        ConfigError: text_only with captions. DataError: an image is missing and the policy is error, or more are than may be.
    """
    config.check()
    if config.missing == "text_only" and rows.template == "plain":
        raise ConfigError(
            "expected --missing error or drop with template plain, found text_only; a caption without its image teaches nothing"
        )
    names = [name for batch in rows.batches for name in batch.column("images").flatten().to_pylist()]
    has = source.has(names)
    missing_N = np.zeros(rows.num_rows, dtype=np.bool_)
    missing_N[np.repeat(np.arange(rows.num_rows), rows.num_images_N)[~has]] = True
    first = names[int(np.argmin(has))] if names else None
    num_missing, num_with = int(missing_N.sum()), int((rows.num_images_N > 0).sum())
    if num_missing and (config.missing == "error" or num_missing > config.max_missing_fraction * num_with):
        allowed = 0.0 if config.missing == "error" else config.max_missing_fraction
        raise DataError(
            f"expected images of all rows but {allowed:.1%} of those that have any, found {num_missing} of {num_with} rows without (the first "
            f"lacks {first!r:.200}); mend the image folder, or see --missing and --max-missing-fraction"
        )
    if config.missing == "text_only":
        return np.arange(rows.num_rows, dtype=np.int64)
    return np.flatnonzero(~missing_N).astype(np.int64)


class ImageLoader:
    """Fetches and decodes the images of rows, and counts what was wrong; the one object here that remembers anything, its counts.

    Args:
        source: Where images lie.
        config: What to do about missing ones.
        num_rows: Rows of the whole data set that have images: `max_missing_fraction` is a share of these.
    """

    def __init__(self, source: ImageSource, config: MissingConfig, *, num_rows: int) -> None:
        config.check()
        self._source = source
        self._config = config
        self._num_rows = num_rows
        self._wrong: set[int] = set()
        self.counts: Counter[str] = Counter()
        """missing, or the RejectReason of an image that could not be decoded: rows, each time that one was met."""

    def load(self, row: Row) -> Sample | None:
        """The row with its images; None where it is to be left out.

        Raises:
            DataError: policy error, or more than max_missing_fraction. ConfigError, TransientError: the store could not be read.
        """
        images: list[NDArray[np.uint8]] = []
        for name in row.images:
            found = self._decoded(name)
            if isinstance(found, tuple):
                return self._without(row, name, *found)
            images.append(found)
        return Sample(row=row, images_HWC=tuple(images))

    def _decoded(self, name: str) -> NDArray[np.uint8] | tuple[str, str]:
        try:
            data = self._source.read(name)
        except DataError as error:
            return "missing", str(error)
        found = decode(data)
        if isinstance(found, Rejected):
            return str(found.reason), found.detail
        # torch warns of arrays that it could not write to, and takes them all the same.
        return np.require(found.image_HWC, requirements=["C", "W"])

    def _without(self, row: Row, name: str, reason: str, detail: str) -> Sample | None:
        self.counts[reason] += 1
        self._wrong.add(row.row)
        if self._config.missing == "error":
            raise DataError(
                f"expected the image {name!r:.200} of {row.named()}, found it {reason} ({one_line(detail)}); mend it, or set --missing drop"
            )
        if len(self._wrong) > self._config.max_missing_fraction * self._num_rows:
            raise DataError(
                f"expected at most {self._config.max_missing_fraction:.1%} of {self._num_rows} rows without their image, found "
                f"{len(self._wrong)} so far (last {name!r:.200}: {reason}); mend the images, or raise --max-missing-fraction"
            )
        return None if self._config.missing == "drop" else Sample(row=without_images(row), images_HWC=())


def without_images(row: Row) -> Row:
    """The row as text alone: no image, and no <image> in its questions."""
    turns = tuple(
        (speaker, text.replace(IMAGE_TOKEN, "").strip() if speaker == "human" else text) for speaker, text in row.turns
    )
    return dataclasses.replace(row, images=(), turns=turns)


def load_all(rows: Sequence[Row], loader: ImageLoader) -> list[Sample]:
    """The samples of rows, those that are to be left out left out."""
    return [sample for sample in map(loader.load, rows) if sample is not None]
