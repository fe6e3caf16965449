"""How many images a shard holds, before anyone has read it: exact where the container says so, else from its first members."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.errors import MmvpError
from mmvp_ray.sources.piece import Sample, Shard
from mmvp_ray.sources.webdataset import read_tar

NUM_SAMPLED = 16
TYPICAL_IMAGE_BYTES = 100_000
"""Guess where the first members tell nothing; ImageNet's photographs have 110 kB on average."""


def bytes_per_member(shard: Shard) -> float:
    """Bytes of a shard for each of its images, from a look at its beginning.

    A shard that cannot be read gives a guess: what is wrong with it is said when it is read in earnest.
    """
    try:
        if shard.kind == "parquet":
            return shard.num_bytes / max(1, _num_rows(shard))
        if shard.kind == "folder":
            return shard.num_bytes / max(1, len(shard.files))
        return _bytes_per_tar_member(shard)
    except (MmvpError, OSError, pa.ArrowInvalid):
        return TYPICAL_IMAGE_BYTES


def num_members(shard: Shard, member_bytes: float) -> int:
    """Images of a shard at `member_bytes` bytes each, at least 1; exact for a folder."""
    found = len(shard.files) if shard.kind == "folder" else max(1, round(shard.num_bytes / max(1.0, member_bytes)))
    return found if shard.max_members is None else min(found, shard.max_members)


def _num_rows(shard: Shard) -> int:
    with storage.open_file(shard.uri) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def _bytes_per_tar_member(shard: Shard) -> float:
    seen = [
        member
        for member in itertools.islice(read_tar(shard, frozenset()), NUM_SAMPLED + 1)
        if isinstance(member, Sample)
    ]
    if len(seen) < 2:
        return float(shard.num_bytes) if seen else TYPICAL_IMAGE_BYTES
    first, last = seen[0].offset, seen[-1].offset
    if first is None or last is None:
        return sum(len(sample.load()) for sample in seen) / len(seen)
    return (last - first) / (len(seen) - 1)
