"""Where images lie, by the names that rows give them: under a folder, or in archives with an index."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.limits import MAX_ENCODED_BYTES
from mmvp_ray.mof.data.image_index import plain_name
from mmvp_ray.mof.data.records import check_version
from mmvp_ray.sources.reread import Place, read_image

# Shapes: N names.


class ImageSource(Protocol):
    """Encoded images by name."""

    def has(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Whether there is an image of each name, (N,); nothing is read or decoded."""

    def read(self, name: str) -> bytes:
        """The encoded bytes.

        Raises:
            DataError: no such image. ConfigError: no permission. TransientError: the store stayed unwell.
        """


class FolderImages:
    """Images that are files under a folder, LLaVA's own layout (coco/train2017/..., gqa/images/...).

    Args:
        root: Path or URL of the folder that names begin at. No name leads out of it by itself; links in it are followed.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, root: str) -> None:
        self._root = storage.normalise(root)
        if not storage.is_folder(self._root):
            raise ConfigError(
                f"expected a folder of images at {self._root}, found none; give the one that the names in the rows begin at"
            )

    def has(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """As the protocol says; a URL is listed as a whole for each call, so ask once for all names."""
        plain = [plain_name(name) for name in names]
        if storage.is_local(self._root):
            root = storage.local_path(self._root)
            return np.array([name is not None and (root / name).is_file() for name in plain], dtype=np.bool_)
        # A request for a thousand names at a time, where asking for each would be one for every image.
        below = {info.uri.removeprefix(f"{self._root}/") for info in storage.find_files(self._root)}
        return np.array([name in below for name in plain], dtype=np.bool_)

    def read(self, name: str) -> bytes:
        """As the protocol says."""
        plain = plain_name(name)
        if plain is None:
            raise DataError(
                f"expected the name of an image under {self._root}, found {name!r:.200}; names may not lead out of it"
            )
        # One byte more than is decoded: decode refuses it, and a file of a terabyte is not read.
        return storage.read_bytes(storage.join(self._root, plain), start=0, end=MAX_ENCODED_BYTES + 1)


class ArchiveImages:
    """Images in tars or Parquet files.

    Args:
        index_uri: What `build_index` wrote.

    Raises:
        ConfigError: there is no index. DataError: it is none.
    """

    def __init__(self, index_uri: str) -> None:
        self._where = storage.normalise(index_uri)
        if not storage.exists(self._where):
            raise ConfigError(f"expected an index of images at {self._where}, found none; build it first")
        data = storage.read_bytes(self._where)
        try:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                check_version(file.schema_arrow, where=self._where)
                self._index = file.read(use_threads=False).combine_chunks()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"expected an index of images in {self._where}, found something else ({' '.join(str(error).split())}); build it again"
            ) from error
        self._names = self._index.column("name")

    def has(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """As the protocol says."""
        plain = pa.array([plain_name(name) for name in names], type=pa.string())
        found = pc.is_in(plain, value_set=self._names, skip_nulls=True)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.bool_)

    def read(self, name: str) -> bytes:
        """As the protocol says. Out of Parquet a whole row group is read for each image: make tars of more than some thousands."""
        plain = plain_name(name)
        row = 0 if plain is None else bisect.bisect_left(self, plain)
        if plain is None or row == len(self) or self[row] != plain:
            raise DataError(
                f"expected {name!r:.200} in the index {self._where}, found no image of this name; build it over all archives"
            )
        return read_image(Place.of(self._index.slice(row, 1).to_pylist()[0]))

    def __len__(self) -> int:
        """Images in the index."""
        return len(self._names)

    def __getitem__(self, row: int) -> str:
        """Name of an image, in sorted order (code points: the same as that of UTF-8 bytes, by which the index is sorted)."""
        return str(self._names[row].as_py())
