"""An index of the images in tars and Parquet files, built once: of each name the file, and in a tar the byte where it begins."""

from __future__ import annotations

import io
import logging
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.data.records import table_schema
from mmvp_ray.sources.parquet import read_parquet
from mmvp_ray.sources.piece import Reject, Sample, Shard
from mmvp_ray.sources.reread import Place
from mmvp_ray.storage import FileInfo

logger = logging.getLogger(__name__)

INDEX: Final = table_schema(
    "mof_image_index",
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("num_bytes", pa.int64(), nullable=False),
    ],
)
"""One row for each image, sorted by name. `offset` is the first byte of the image in a tar, null in Parquet, where `member` is `<row>:<path>`."""

_BLOCK_BYTES: Final = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """Which archives are indexed, and to where."""

    archives: tuple[str, ...] = ()
    """PREFIX=PATTERN: files, folders or globs of .tar and .parquet, and what stands before their names in the rows (coco=s3://bucket/train2017.tar); the prefix may be empty."""
    out: str | None = None
    """Parquet file of the index (path or URL)."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be meant."""
        if not self.archives or not all("=" in each for each in self.archives):
            raise ConfigError(
                f"expected --archives PREFIX=PATTERN, found {', '.join(self.archives) or 'none'}; for example coco=images/train2017.tar, or =images.tar"
            )
        if not self.out or not self.out.endswith(".parquet"):
            raise ConfigError(
                f"expected a file ending in .parquet in --out, found {self.out}; training knows an index by it"
            )

    def pairs(self) -> list[tuple[str, str]]:
        """(pattern, prefix) of each archive, as `build_index` takes them."""
        return [(pattern, prefix) for prefix, _, pattern in (each.partition("=") for each in self.archives)]


def plain_name(name: str) -> str | None:
    """A name in the one form that is looked up: no "./", no double slash; None for one that is absolute or leads upwards."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        return None
    return str(path)


def build_index(archives: Iterable[tuple[str, str]], out: str) -> int:
    """Look through archives and write the index to `out`, atomically.

    Only the headers of tars are read; of Parquet files everything. An archive that changes later makes reading an image fail only where its
    size or its bytes show it: build the index again. Rows of Parquet files without an image that can be used are logged, with their number.

    Args:
        archives: (pattern, prefix): a file, folder or glob of .tar and .parquet, and what stands before the names in it in the rows, such as
            ("images/train2017.tar", "coco").
        out: Parquet file to write (path or URL).

    Returns:
        Number of images.

    Raises:
        ConfigError: no files, or files of another kind. DataError: an archive that is cut or broken, or two places for one name.
    """
    found: dict[str, Place] = {}
    for pattern, prefix in archives:
        for info in storage.find_files(storage.normalise(pattern)):
            for name, place in _images(info):
                plain = plain_name(f"{prefix.strip('/')}/{name}" if prefix.strip("/") else name)
                if plain is None:
                    raise DataError(
                        f"expected names that stay below one folder, found {name!r:.200} in {info.uri}; pack the archive again"
                    )
                before = found.get(plain)
                if before is not None:
                    other = "" if before.uri == place.uri else ", or give them different prefixes"
                    raise DataError(
                        f"expected one place for each image, found {plain!r:.200} at {_where(before)} and at {_where(place)}; take one out{other}"
                    )
                found[plain] = place
    names = sorted(found)
    table = pa.table(
        {
            "name": names,
            "uri": [found[name].uri for name in names],
            "member": [found[name].member for name in names],
            "offset": pa.array([found[name].offset for name in names], type=pa.int64()),
            "num_bytes": pa.array([found[name].num_bytes for name in names], type=pa.int64()),
        },
        schema=INDEX,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.normalise(out), sink.getvalue())
    return len(names)


def _where(place: Place) -> str:
    at = f"row {place.member.partition(':')[0]}" if place.offset is None else f"byte {place.offset}"
    return f"{at} of {place.uri}"


def _images(info: FileInfo) -> Iterator[tuple[str, Place]]:
    if info.uri.endswith(".tar"):
        return _tar_members(info)
    if info.uri.endswith(".parquet"):
        return _parquet_images(info)
    raise ConfigError(
        f"expected archives named .tar (not compressed) or .parquet, found {info.uri}; name them by a glob"
    )


def _tar_members(info: FileInfo) -> Iterator[tuple[str, Place]]:
    """Files in a tar."""
    end = 0
    with storage.open_file(info.uri, etag=info.etag) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                    end = member.offset_data + -(-member.size // _BLOCK_BYTES) * _BLOCK_BYTES
                    if member.isreg() and not member.issparse():
                        place = Place(
                            uri=info.uri, member=member.name, offset=member.offset_data, num_bytes=member.size
                        )
                        yield member.name, place
            # tarfile takes a cut or broken header for the end.
            file.seek(end)
            block = file.read(_BLOCK_BYTES)
            if block != bytes(_BLOCK_BYTES):
                raise tarfile.ReadError(f"no end-of-archive mark at byte {end}")
        except (tarfile.TarError, EOFError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise DataError(
                f"expected a whole tar, found a cut or broken one in {info.uri} ({' '.join(str(error).split())[:200]}); fetch it again"
            ) from error


def _parquet_images(info: FileInfo) -> Iterator[tuple[str, Place]]:
    shard = Shard(corpus="", kind="parquet", uri=info.uri, num_bytes=info.num_bytes, etag=info.etag)
    rejects: list[Reject] = []
    for sample in read_parquet(shard, frozenset()):
        if isinstance(sample, Reject):
            rejects.append(sample)
        if not isinstance(sample, Sample):
            continue
        row, _, path = sample.member.partition(":")
        if not path:
            raise DataError(
                f"expected a path beside each image (struct<bytes, path>), found none in row {row} of {info.uri}; write them with their names"
            )
        place = Place(uri=info.uri, member=sample.member, offset=None, num_bytes=len(sample.load()))
        yield path, place
    if rejects:
        logger.warning(
            "expected an image in every row of %s, found %d rows without one that can be used (the first, %s: %s); whatever names them has no image",
            info.uri,
            len(rejects),
            rejects[0].member,
            rejects[0].detail,
        )
