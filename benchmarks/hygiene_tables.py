"""Made-up tables for benchmarks/hygiene.py: near pairs with copies and hubs, and folders of committed pieces.

* Pairs: near_pairs and scores tables, through the store's own writer. Images form clusters of power-law size, 30 % of them are copies of the
  one before; one image has up to 5,000 copies; 20 hubs have a two-thousandth of the pairs each. Ids are those of made-up hashes.
* Pieces: names in folders are hard links to a few real tables and markers, so that every listing and every reading is real, and the content
  repeats. For a census, ids come from a generator instead of tables; 30 % of them occur a second time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray.schema import IMAGES, NEAR_PAIRS, REJECTS, SCORES
from mmvp_ray.search.id_words import ids_of, sort_order, words_of
from mmvp_ray.sources.piece import Shard
from mmvp_ray.store import DONE, embeddings_table, id_array, open_store, write_marker, write_table

PART_PAIRS = 2_000_000
NUM_HUBS = 20
MAX_COPIES = 5000
PIECES_PER_SHARD = 5
PIECE_IMAGES = 2000
LINKS_PER_FILE = 30_000
NUM_TABLES = 32
KEY, NEAR, FAR = "made-up", "near-encoder", "far-encoder"


def hashes(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """An image id, 16 bytes, for each number: as even and as unrelated as SHA-256 for what is measured here (splitmix64)."""
    words = np.empty((len(numbers), 2), dtype=np.uint64)
    for word in (0, 1):
        z = (numbers.astype(np.uint64) * np.uint64(2) + np.uint64(word + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[:, word] = z ^ (z >> np.uint64(31))
    return ids_of(words)


def make_pairs(root: str, num_pairs: int) -> None:
    """Write the parts of a near_pairs table and of a scores table, with their markers."""
    store, rng = open_store(root), np.random.default_rng(0)
    near_folder, far_folder = store.near_pairs(NEAR, KEY), store.scores(FAR, NEAR, KEY)
    num_parts = num_images = 0
    for first, second, same in made_pairs(num_pairs, rng):
        num_images = max(num_images, int(second.max()) + 1)
        near = np.where(same, 0.985 + 0.015 * rng.random(len(same)), 0.93 + 0.055 * np.sqrt(rng.random(len(same))))
        far = np.where(same, 0.95 + 0.05 * rng.random(len(same)), rng.random(len(same)))
        ids_a, ids_b = hashes(first), hashes(second)
        a, b = words_of(ids_a), words_of(ids_b)
        swap = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
        ids_a[swap], ids_b[swap] = ids_b[swap], ids_a[swap]
        a, b = words_of(ids_a), words_of(ids_b)
        order = sort_order(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
        ids = [id_array(ids_a[order]), id_array(ids_b[order])]
        for folder, cosines, schema in ((near_folder, near, NEAR_PAIRS), (far_folder, far, SCORES)):
            table = pa.Table.from_arrays([*ids, pa.array(cosines[order])], schema=schema)
            entry = write_table(store, f"{folder}/part-{num_parts:05d}.parquet", table)
            write_marker(f"{folder}/part-{num_parts:05d}{DONE}", files=[entry])
        num_parts += 1
    Path(root, "made.json").write_text(json.dumps({"num_parts": num_parts, "num_images": num_images}))


def made_pairs(
    num_pairs: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]:
    """Numbers of two images each, and whether they are copies; each pair once."""
    num_hub_pairs = NUM_HUBS * (num_pairs // 2000)
    num_copies = min(MAX_COPIES, int(np.sqrt(num_pairs / 4)))
    sizes, left = [num_copies], num_pairs - num_hub_pairs - num_copies * (num_copies - 1) // 2
    while left > 0:
        more = np.minimum(200, (2 * rng.random(100_000) ** (-1 / 2)).astype(np.int64))
        ends = np.cumsum(more * (more - 1) // 2)
        more = more[: int(np.searchsorted(ends, left)) + 1]
        left -= int((more * (more - 1) // 2).sum())
        sizes += more.tolist()
    size = np.array(sizes)
    first_of_cluster = np.cumsum(size) - size
    # Each image is paired with those that follow it in its cluster.
    place = np.arange(size.sum()) - np.repeat(first_of_cluster, size)
    partners = np.repeat(size, size) - 1 - place
    is_copy = rng.random(len(place)) < 0.3
    is_copy[:num_copies] = True
    picture = np.cumsum(~is_copy | (place == 0))
    ends = np.cumsum(partners)
    begin = 0
    while begin < len(place):
        end = int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + PART_PAIRS)) + 1
        counts = partners[begin:end]
        first = np.repeat(np.arange(begin, begin + len(counts)), counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        if len(first):
            yield first, second, picture[first] == picture[second]
        begin = end
    for hub in range(NUM_HUBS if num_hub_pairs else 0):
        others = num_copies + hub + NUM_HUBS * np.arange(num_hub_pairs // NUM_HUBS)
        hubs = np.full(len(others), len(place) + hub)
        # Images of different numbers, so that a pair of a hub is no pair of a cluster.
        yield others, hubs, np.zeros(len(others), dtype=bool)


def shards_of(num_pieces: int) -> list[Shard]:
    """As many shards as a plan of so many pieces has."""
    num_bytes = PIECES_PER_SHARD * PIECE_IMAGES * 100_000
    return [
        Shard(corpus="laion", kind="tar", uri=f"/made-up/{number:06d}.tar", num_bytes=num_bytes, etag="0")
        for number in range(-(-num_pieces // PIECES_PER_SHARD))
    ]


def piece_names(num_pieces: int) -> list[str]:
    """Their pieces, sorted."""
    names = (
        f"{key}-{index:06d}"
        for key in (shard.key for shard in shards_of(num_pieces))
        for index in range(PIECES_PER_SHARD)
    )
    return sorted(names)[:num_pieces]


class Links:
    """Names for a few files: every so many names another copy, since a file takes only so many."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._used = folder, dict[Path, int]()

    def link(self, source: Path, target: Path) -> None:
        used = self._used.get(source, 0)
        copy = self._folder / f"{source.name}.{used // LINKS_PER_FILE}"
        if used % LINKS_PER_FILE == 0:
            shutil.copyfile(source, copy)
        os.link(copy, target)
        self._used[source] = used + 1


def make_pieces(root: str, num_pieces: int) -> None:
    """Folders of committed pieces: tables and markers of images, rejects and two encoders."""
    store, rng = open_store(root), np.random.default_rng(2)
    num_images = json.loads(Path(root, "made.json").read_text())["num_images"]
    originals = Path(root, "originals")
    originals.mkdir()
    lost = [
        {"uri": "/made-up/000000.tar", "member": f"{n}.jpg", "reason": "not_an_image", "detail": "text"}
        for n in range(40)
    ]
    rejects = write_table(store, f"{root}/originals/rejects.parquet", pa.Table.from_pylist(lost, schema=REJECTS))
    no_rejects = write_table(store, f"{root}/originals/none.parquet", pa.Table.from_pylist([], schema=REJECTS))
    tables = []
    for number in range(NUM_TABLES):
        ids = hashes(rng.integers(0, 4 * num_images, PIECE_IMAGES))
        rows = [
            {
                "image_id": row.tobytes(),
                "uri": "/made-up/000000.tar",
                "member": f"{n:09d}.jpg",
                "offset": 100_000 * n,
                "num_bytes": 100_000,
                "width_px": 512,
                "height_px": 384,
                "caption": f"A picture of thing number {n}, seen from the left",
            }
            for n, row in enumerate(ids)
        ]
        images = write_table(store, f"{root}/originals/{number}.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
        tables.append(images)
    vectors = np.zeros((PIECE_IMAGES, 8), dtype=np.float16)
    embedded = write_table(store, f"{root}/originals/vectors.parquet", embeddings_table(ids, vectors))
    markers = {}
    for last in (False, True):
        facts: dict[str, Any] = {
            "shard": {"uri": "/made-up/000000.tar", "num_bytes": 1, "etag": "0"},
            "index": 0,
            "last": last,
        }
        for name, files in {
            "images": [tables[0], no_rejects],
            "images-rejects": [tables[0], rejects],
            "vectors": [embedded],
            "vectors-rejects": [embedded, rejects],
        }.items():
            markers[name, last] = originals / f"{name}-{last}{DONE}"
            write_marker(str(markers[name, last]), files=files, **facts)
    links, uneven = Links(originals), rng.random(num_pieces) < 0.2
    folders = {"images": Path(store.images("laion"))} | {
        slug: Path(store.embeddings(slug, "laion")) for slug in (NEAR, FAR)
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    for number, name in enumerate(piece_names(num_pieces)):
        last = name.endswith(f"-{PIECES_PER_SHARD - 1:06d}")
        for kind, folder in folders.items():
            what = "images" if kind == "images" else "vectors"
            table = originals / (f"{number % NUM_TABLES}.parquet" if kind == "images" else "vectors.parquet")
            odd = "-rejects" if uneven[number] and (kind == "images" or number % 100 == 0) else ""
            links.link(table, folder / f"{name}.parquet")
            links.link(markers[what + odd, last], folder / f"{name}{DONE}")
            if odd and kind != "images":
                links.link(originals / "rejects.parquet", folder / f"{name}.rejects.parquet")


def made_ids(uri: str) -> NDArray[np.uint8]:
    """The ids of a piece by the name of its table; three in ten occur in an earlier piece too."""
    stem, _, index = uri.rsplit("/", 1)[1].removesuffix(".parquet").rpartition("-")
    number = int(stem.split("-", 1)[0]) * PIECES_PER_SHARD + int(index)
    rng = np.random.default_rng(number)
    images = np.arange(number * PIECE_IMAGES, (number + 1) * PIECE_IMAGES)
    again = rng.random(PIECE_IMAGES) < 0.3
    if number:
        images[again] = rng.integers(0, number * PIECE_IMAGES, int(again.sum()))
    return hashes(images)
