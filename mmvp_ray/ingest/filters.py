"""Which rows of the metadata are worth asking for: thresholds first, on columns; then each remaining URL. Every drop is counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray.errors import ConfigError
from mmvp_ray.ingest.deny_list import DenyList, read_deny_list
from mmvp_ray.ingest.fetch_reasons import FetchError, FetchReason
from mmvp_ray.ingest.urls import read_url

# Shapes: N rows of a batch, K of them kept.


class DropReason(StrEnum):
    """Why a row of the metadata is not asked for; a row counts under the first reason that holds, in this order."""

    NO_URL = "no_url"
    SIMILARITY = "similarity"
    SIMILARITY_UNKNOWN = "similarity_unknown"
    UNSAFE = "unsafe"
    UNSAFE_UNKNOWN = "unsafe_unknown"
    NSFW_TAG = "nsfw_tag"
    NSFW_TAG_UNKNOWN = "nsfw_tag_unknown"
    WATERMARK = "watermark"
    WATERMARK_UNKNOWN = "watermark_unknown"
    AESTHETIC = "aesthetic"
    AESTHETIC_UNKNOWN = "aesthetic_unknown"
    SIZE = "size"
    SIZE_UNKNOWN = "size_unknown"
    ASPECT = "aspect"
    LICENSE = "license"
    LICENSE_UNKNOWN = "license_unknown"
    ID_DENIED = "id_denied"
    BAD_URL = "bad_url"
    SCHEME_REFUSED = "scheme_refused"
    URL_DENIED = "url_denied"
    DOMAIN_DENIED = "domain_denied"
    DUPLICATE_URL = "duplicate_url"
    """The same URL (in normal form) stands earlier in the metadata of this job; found after all other reasons."""


REASONS: tuple[DropReason, ...] = tuple(DropReason)
_CODES = {reason: code for code, reason in enumerate(REASONS, start=1)}
KEPT = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LaionFilters:
    """What the metadata must say of an image. Limits are inclusive; a filter that is not given lets everything pass."""

    min_similarity: float | None = None
    """Smallest CLIP similarity of image and text."""
    max_punsafe: float | None = None
    """Largest probability of being unsafe."""
    nsfw_tag: tuple[str, ...] = ()
    """NSFW tag of laion-400m and laion2B that is let pass, such as UNLIKELY; repeat it for several."""
    max_pwatermark: float | None = None
    """Largest probability of a watermark."""
    min_aesthetic: float | None = None
    """Smallest aesthetic score."""
    min_width_px: int | None = None
    """Smallest width that the metadata claim."""
    min_height_px: int | None = None
    """Smallest height that the metadata claim."""
    max_width_px: int | None = None
    """Largest width that the metadata claim."""
    max_height_px: int | None = None
    """Largest height that the metadata claim."""
    max_aspect: float | None = None
    """Largest ratio of the longer side to the shorter."""
    license: tuple[str, ...] = ()
    """Licence that is let pass, as the metadata write it (upper and lower case are the same); repeat it for several."""
    unknown: Literal["drop", "keep"] = "drop"
    """What becomes of a row whose value for a filter is missing (null or NaN); dropped rows are counted as <filter>_unknown."""
    deny_domain: tuple[str, ...] = ()
    """Domain that is never asked, with all names below it, redirects included; repeat it for several."""
    deny_domain_file: tuple[str, ...] = ()
    """File (path or URL) of such domains, one a line; repeat it for several."""
    deny_file: tuple[str, ...] = ()
    """File (path or URL) of URLs, SHA-256s of URLs (64 hex digits) or ids of the metadata that are never asked, one a line; repeat it for several."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ("max_punsafe", "max_pwatermark"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(
                    f"expected a probability between 0 and 1, found {value} in --{name.replace('_', '-')}; LAION-Aesthetics took 0.5 and 0.8"
                )
        for name in ("min_width_px", "min_height_px", "max_width_px", "max_height_px"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"expected at least 1, found {value} in --{name.replace('_', '-')}; give a number of pixels"
                )
        if self.max_aspect is not None and not self.max_aspect >= 1.0:
            raise ConfigError(f"expected at least 1, found {self.max_aspect} in --max-aspect; 3 is usual")

    def deny_list(self) -> DenyList:
        """What the deny flags and files say; reads the files."""
        return read_deny_list(domains=self.deny_domain, domain_files=self.deny_domain_file, files=self.deny_file)

    def needed_columns(self, deny: DenyList) -> dict[str, str]:
        """The columns (our names) that these filters cannot do without, each with the flag that needs it."""
        sizes = ("min_width_px", "min_height_px", "max_width_px", "max_height_px", "max_aspect")
        needs = {
            "similarity": self.min_similarity is not None and "--min-similarity",
            "punsafe": self.max_punsafe is not None and "--max-punsafe",
            "nsfw": bool(self.nsfw_tag) and "--nsfw-tag",
            "pwatermark": self.max_pwatermark is not None and "--max-pwatermark",
            "aesthetic": self.min_aesthetic is not None and "--min-aesthetic",
            "license": bool(self.license) and "--license",
            "laion_id": bool(deny.ids) and "the ids in --deny-file",
        }
        size_flags = [f"--{name.replace('_', '-')}" for name in sizes if getattr(self, name) is not None]
        if size_flags:
            needs |= {"laion_width": size_flags[0], "laion_height": size_flags[0]}
        return {column: flag for column, flag in needs.items() if flag}


def judge(table: pa.Table, filters: LaionFilters, deny: DenyList) -> tuple[NDArray[np.int8], list[str]]:
    """Judge the rows of a batch.

    Args:
        table: Rows with columns of laion_metadata.COLUMNS; a missing column is unknown throughout.
        filters: Thresholds.
        deny: What is never asked.

    Returns:
        For each row 0 if it is kept, else 1 + the place of its reason in REASONS, (N,) int8; and the normal forms of the URLs of the
        kept rows, K in order.
    """
    codes_N = np.zeros(table.num_rows, dtype=np.int8)
    _mark(codes_N, ~_known(table, "url"), DropReason.NO_URL)
    _threshold(codes_N, table, filters, "similarity", DropReason.SIMILARITY, low=filters.min_similarity)
    _threshold(codes_N, table, filters, "punsafe", DropReason.UNSAFE, high=filters.max_punsafe)
    _choice(codes_N, table, filters, "nsfw", DropReason.NSFW_TAG, filters.nsfw_tag)
    _threshold(codes_N, table, filters, "pwatermark", DropReason.WATERMARK, high=filters.max_pwatermark)
    _threshold(codes_N, table, filters, "aesthetic", DropReason.AESTHETIC, low=filters.min_aesthetic)
    _sizes(codes_N, table, filters)
    _choice(codes_N, table, filters, "license", DropReason.LICENSE, filters.license)
    return codes_N, _urls(codes_N, table, deny)


def _urls(codes_N: NDArray[np.int8], table: pa.Table, deny: DenyList) -> list[str]:
    left = np.flatnonzero(codes_N == KEPT)
    texts = table.column("url").take(pa.array(left)).to_pylist()
    ids = table.column("laion_id").take(pa.array(left)).to_pylist() if deny.ids else [None] * len(left)
    kept: list[str] = []
    for row, text, own_id in zip(left.tolist(), texts, ids, strict=True):
        reason, url = _judge_url(text, own_id, deny)
        if reason is None:
            kept.append(url)
        else:
            codes_N[row] = _CODES[reason]
    return kept


def _judge_url(text: str, own_id: str | None, deny: DenyList) -> tuple[DropReason | None, str]:
    if own_id is not None and own_id in deny.ids:
        return DropReason.ID_DENIED, ""
    try:
        target = read_url(text)
    except FetchError as error:
        is_scheme = error.reason == FetchReason.SCHEME_REFUSED
        return DropReason.SCHEME_REFUSED if is_scheme else DropReason.BAD_URL, ""
    if deny.denies_url(text, target.url):
        return DropReason.URL_DENIED, ""
    if deny.denies_host(target.host):
        return DropReason.DOMAIN_DENIED, ""
    return None, target.url


def _mark(codes_N: NDArray[np.int8], bad_N: NDArray[np.bool_], reason: DropReason) -> None:
    codes_N[(codes_N == KEPT) & bad_N] = _CODES[reason]


def _known(table: pa.Table, name: str) -> NDArray[np.bool_]:
    if name not in table.column_names:
        return np.zeros(table.num_rows, dtype=bool)
    found: NDArray[np.bool_] = table.column(name).is_valid().to_numpy()
    return found


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    found: NDArray[np.float64] = table.column(name).to_numpy().astype(np.float64)
    return found


def _unknown(
    codes_N: NDArray[np.int8], unknown_N: NDArray[np.bool_], filters: LaionFilters, reason: DropReason
) -> None:
    if filters.unknown == "drop":
        _mark(codes_N, unknown_N, DropReason(f"{reason}_unknown"))


def _threshold(
    codes_N: NDArray[np.int8],
    table: pa.Table,
    filters: LaionFilters,
    name: str,
    reason: DropReason,
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    if low is None and high is None:
        return
    # As 32-bit floats, which most releases hold: 0.8 in them is no more than 0.8 in a flag.
    values_N = _numbers(table, name).astype(np.float32)
    # A comparison with NaN is false: what is not known is judged below.
    if low is not None:
        _mark(codes_N, values_N < np.float32(low), reason)
    if high is not None:
        _mark(codes_N, values_N > np.float32(high), reason)
    _unknown(codes_N, np.isnan(values_N), filters, reason)


def _sizes(codes_N: NDArray[np.int8], table: pa.Table, filters: LaionFilters) -> None:
    width_N, height_N = _numbers(table, "laion_width"), _numbers(table, "laion_height")
    limits = (
        (width_N, filters.min_width_px, filters.max_width_px),
        (height_N, filters.min_height_px, filters.max_height_px),
    )
    for values_N, low, high in limits:
        if low is not None:
            _mark(codes_N, values_N < low, DropReason.SIZE)
        if high is not None:
            _mark(codes_N, values_N > high, DropReason.SIZE)
    for values_N, low, high in limits:
        if low is not None or high is not None or filters.max_aspect is not None:
            _unknown(codes_N, np.isnan(values_N), filters, DropReason.SIZE)
    if filters.max_aspect is not None:
        ratio_N = np.maximum(width_N, height_N) / np.minimum(width_N, height_N)
        _mark(codes_N, ratio_N > filters.max_aspect, DropReason.ASPECT)


def _choice(
    codes_N: NDArray[np.int8],
    table: pa.Table,
    filters: LaionFilters,
    name: str,
    reason: DropReason,
    allowed: tuple[str, ...],
) -> None:
    if not allowed:
        return
    wanted = {text.strip().lower() for text in allowed}
    known_N = _known(table, name)
    texts = table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows
    fits_N = np.array([text is not None and text.strip().lower() in wanted for text in texts], dtype=bool)
    _mark(codes_N, known_N & ~fits_N, reason)
    _unknown(codes_N, ~known_N, filters, reason)


def counts_of(codes_N: NDArray[np.int8]) -> dict[str, int]:
    """How many rows were dropped for each reason that occurs, in the order of the reasons."""
    counts = np.bincount(codes_N, minlength=len(REASONS) + 1)
    return {str(reason): int(counts[code]) for reason, code in _CODES.items() if counts[code]}
