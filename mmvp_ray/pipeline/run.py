"""A finished run as Python sees it: open_run(url).pairs(), .blind_pairs(), .image(image_id), CSV export, verification."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.pipeline.dated_runs import run_folder
from mmvp_ray.pipeline.places import first_places, read_again
from mmvp_ray.pipeline.results import (
    MANIFEST,
    PIECES_FILE,
    REPORT_JSON,
    SELECTION,
    blind_folder,
)
from mmvp_ray.schema import BLIND_PAIRS, SCHEMA_VERSION
from mmvp_ray.search import PieceRef, Space
from mmvp_ray.store import Store, open_store, read_table
from mmvp_ray.store.verify import Verdict, verify

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Run:
    """A finished mining run. Tables are pyarrow's; `.to_pandas()` and `.to_pylist()` turn them into what you like.

    Attributes:
        url: The run's folder.
        manifest: Config, encoders, rule, counts, timings and versions.
    """

    url: str
    manifest: dict[str, Any]

    def pairs(self) -> pa.Table:
        """The selection, best first, with places and captions (schema.PAIRS)."""
        return read_table(storage.join(self.url, SELECTION))

    def blind_pairs(self, near: str | None = None, far: str | None = None) -> pa.Table:
        """Every pair that meets the rule, sorted by ids (schema.BLIND_PAIRS).

        Args:
            near: Name of a near encoder of the run; the first unless given.
            far: Name of a far encoder of the run; the first unless given.

        Raises:
            ConfigError: the run has no such combination.
        """
        combinations = self.manifest["combinations"]
        names = (near or combinations[0]["near"]["name"], far or combinations[0]["far"]["name"])
        chosen = [one for one in combinations if (one["near"]["name"], one["far"]["name"]) == names]
        if not chosen:
            known = ", ".join(f"{one['near']['name']} / {one['far']['name']}" for one in combinations)
            raise ConfigError(
                f"expected one of {known}, found {names[0]} / {names[1]}; the run {self.url} has no others"
            )
        folder = blind_folder(self.url, chosen[0]["near"]["slug"], chosen[0]["far"]["slug"])
        parts = [
            read_table(storage.join(folder, name)) for name in storage.list_names(folder) if name.endswith(".parquet")
        ]
        return pa.concat_tables(parts) if parts else BLIND_PAIRS.empty_table()

    def report(self) -> dict[str, Any]:
        """The numbers of report.html."""
        found: dict[str, Any] = storage.read_json(storage.join(self.url, REPORT_JSON))
        return found

    def place(self, image_id: str | bytes) -> dict[str, Any]:
        """The row of the images table where an image was seen first.

        Args:
            image_id: 16 bytes, or 32 hex digits.

        Raises:
            ConfigError: no image id, or an image that is not in this run.
        """
        return self.places([image_id])[_key(image_id)]

    def places(self, image_ids: Collection[str | bytes]) -> dict[bytes, dict[str, Any]]:
        """By id (16 bytes), the rows of the images tables where some images were seen first, all looked up in one pass.

        Raises:
            ConfigError: no image id, or an image that is not in this run.
        """
        keys = [_key(image_id) for image_id in image_ids]
        found = first_places(self._store(), self._pieces(), keys)
        missing = next((key for key in keys if key not in found), None)
        if missing is not None:
            raise ConfigError(
                f"expected an image of the run {self.url}, found none with id {missing.hex()}; ids are in pairs() and blind_pairs()"
            )
        return {key: row for key, (_, row) in found.items()}

    def image_bytes(self, image_id: str | bytes) -> bytes:
        """The encoded bytes of an image, read again from its shard.

        Raises:
            ConfigError: an image that is not in this run. DataError: the shard changed or is gone.
        """
        return read_again(self.place(image_id))

    def image(self, image_id: str | bytes) -> Image:
        """An image as the encoders saw it before resizing: RGB, upright.

        Raises:
            ConfigError: an image that is not in this run. DataError: the shard changed or is gone.
        """
        from PIL import Image

        found = decode(self.image_bytes(image_id))
        if not isinstance(found, Decoded):
            raise DataError(
                f"expected a decodable image {_key(image_id).hex()} in {self.url}, found {found.reason}: {found.detail}; the shard changed since it was mined"
            )
        return Image.fromarray(found.image_HWC)

    def neighbours(self, image_id: str | bytes, *, num: int = 10) -> list[tuple[bytes, float]]:
        """The images nearest to one image in the first near encoder's space: (image id, cosine), best first, ties by id.

        The first call builds an index in the store and later ones use it; neighbours are ranked by their exact cosines, and the index may
        overlook one.

        Args:
            image_id: 16 bytes, or 32 hex digits.
            num: How many.

        Raises:
            ConfigError: no image id, or an image that is not in this run.
        """
        from mmvp_ray.search.neighbours import neighbours

        card = self.manifest["encoders"]["near"]
        centre = self.manifest.get("centres", {}).get(card["slug"])
        space = Space(card["slug"], card["dim"], None if centre is None else base64.b64decode(centre))
        return neighbours(self._store(), space, self._pieces(), _key(image_id), num=num)

    def to_csv(self, url: str) -> None:
        """Write the selection as CSV, ids as hex digits."""
        import pyarrow.csv

        table = self.pairs()
        for name in ("image_id_a", "image_id_b"):
            hexed = pa.array(
                [value.hex() for value in table.column(name).to_pylist()],
                type=pa.string(),
            )
            table = table.set_column(table.schema.get_field_index(name), name, hexed)
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        storage.write_bytes(url, sink.getvalue().to_pybytes())

    def verify(self) -> Verdict:
        """Recount and re-hash the run's store."""
        return verify(self.manifest["store"])

    def _pieces(self) -> list[PieceRef]:
        rows = read_table(storage.join(self.url, PIECES_FILE)).to_pylist()
        return [PieceRef(row["corpus"], row["piece"]) for row in rows]

    def _store(self) -> Store:
        return open_store(self.manifest["store"], create=False)


def open_run(url: str) -> Run:
    """Open the finished run in a folder, or the latest one of a folder of dated runs: RUNS or RUNS/latest.

    Raises:
        ConfigError: there is no finished run. DataError: it is of another schema version.
    """
    url = run_folder(url)
    uri = storage.join(url, MANIFEST)
    if not storage.exists(uri):
        raise ConfigError(
            f"expected a finished run with a {MANIFEST} at {url}, found none; run jobs/mine.py --out {url}, which goes on where it stopped"
        )
    manifest = storage.read_json(uri)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"expected a run of schema version {SCHEMA_VERSION}, found {version} in {uri}; open it with the mmvp-ray that wrote it"
        )
    return Run(url, manifest)


def _key(image_id: str | bytes) -> bytes:
    try:
        key = bytes.fromhex(image_id) if isinstance(image_id, str) else bytes(image_id)
    except ValueError as error:
        raise ConfigError(
            f"expected an image id of 32 hex digits, found {image_id!r}; ids are in pairs() and blind_pairs()"
        ) from error
    if len(key) != 16:
        raise ConfigError(
            f"expected an image id of 16 bytes, found {len(key)} in {image_id!r}; ids are in pairs() and blind_pairs()"
        )
    return key
