"""What the store costs in bytes and in time: `python -m benchmarks.store [--num-images N] [--rounds N] [--json FILE]`.

Bytes: the embeddings and near pairs of a synthetic world (benchmarks/vectors.py) and the images tables of a miniature
world of as many pictures, markers apart, each by image, beside the raw bytes of the same: an id of 16 bytes and a
vector of fp16 numbers.

Rates: one thread writes every piece through mmvp_ray.store, with what makes it safe (a temporary name, fsync,
SHA-256, a marker), and reads it by mmvp_ray.search.space.read_vectors, as the engines do. Beside it in the same
rounds: np.save and np.load of the same arrays, np.save with an fsync of each file, and pyarrow.parquet.read_table of
the same files, to the same numpy arrays. Medians over rounds; what is read lies in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contest import machine
from benchmarks.vectors import SLUG, World, draw_piece, write_vectors

# Shapes: N vectors of a piece, D numbers in each.

ID_BYTES = 16
Arrays = tuple[NDArray[np.uint8], NDArray[np.float16]]


def table_bytes(root: Path, pattern: str) -> int:
    """Bytes of the files below `root` that match."""
    return sum(path.stat().st_size for path in root.glob(pattern))


def images_bytes(folder: Path, num_images: int) -> dict[str, float]:
    """Bytes an image of the images tables and their markers, of a miniature world as the pipeline commits it."""
    from mmvp_ray.embed.decode_piece import decode_piece
    from mmvp_ray.embed.wire import EncodedPiece
    from mmvp_ray.miniature.shards import WorldConfig, write_shards
    from mmvp_ray.sources import list_shards, read_pieces
    from mmvp_ray.store import open_store

    world = WorldConfig(num_images=num_images, num_exact_copies=0, num_near_copies=0, num_broken=0)
    write_shards(folder / "world", world)
    root, store = folder / "images", open_store(str(folder / "images"))
    for shard in list_shards("miniature", f"{folder}/world/*.tar"):
        for piece in read_pieces(shard):
            item = EncodedPiece(piece=piece, images_done=False, missing=(), read_seconds=0.0)
            decode_piece(store, item, [], [])
    return {
        "images": table_bytes(root, "corpora/*/images/*.parquet") / num_images,
        "images_markers": table_bytes(root, "corpora/*/images/*.done.json") / num_images,
        "rejects": table_bytes(root, "corpora/*/rejects/*.parquet") / num_images,
    }


def vectors_bytes(folder: Path, world: World) -> dict[str, float]:
    """Bytes an image of embeddings, markers, and near pairs above 0.93; and bytes a pair."""
    from mmvp_ray.cluster import Inline
    from mmvp_ray.search import SearchConfig, choose_method, find_near_pairs
    from mmvp_ray.search.table import record_batches
    from mmvp_ray.store import open_store

    root = folder / "embeddings"
    store = open_store(str(root))
    pieces = write_vectors(store, world)
    method = choose_method(SearchConfig(engine="exact"), num_images=world.num_images, device="cpu")
    table, _ = find_near_pairs(store, world.space, pieces, floor=0.93, method=method, device="cpu", session=Inline())
    num_pairs = sum(batch.num_rows for part in table.parts for batch in record_batches(table.near_uri(part)))
    pairs = table_bytes(root, "near_pairs/**/*.parquet")
    return {
        "embeddings": table_bytes(root, "embeddings/**/*.parquet") / world.num_images,
        "embeddings_markers": table_bytes(root, "embeddings/**/*.done.json") / world.num_images,
        "near_pairs": pairs / world.num_images,
        "pairs_an_image": num_pairs / world.num_images,
        "bytes_a_pair": pairs / max(1, num_pairs),
    }


class Bench:
    """The same pieces in memory and on the disk, and every way of writing and reading them.

    Attributes:
        raw_bytes: Of all ids and vectors.
    """

    def __init__(self, folder: Path, world: World) -> None:
        from mmvp_ray.store import open_store

        self._folder, self._world = folder, world
        self._arrays = [draw_piece(world, number) for number in range(world.num_pieces)]
        self.raw_bytes = sum(ids.nbytes + vectors.nbytes for ids, vectors in self._arrays)
        self._store, self._pieces = open_store(str(folder / "rates")), self._named()

    def _named(self) -> list[Any]:
        from mmvp_ray.sources.piece import Piece, Shard

        shard = Shard(corpus="rates", kind="tar", uri="/synthetic/rates.tar", num_bytes=1, etag="rates")
        last = len(self._arrays) - 1
        return [
            Piece(shard=shard, index=number, last=number == last, samples=(), rejects=())
            for number in range(len(self._arrays))
        ]

    def write_store(self) -> None:
        """By the store."""
        from mmvp_ray.store import commit_embeddings

        for piece, (ids_N16, vectors_ND) in zip(self._pieces, self._arrays, strict=True):
            commit_embeddings(self._store, piece, SLUG, ids_N16, vectors_ND, [])

    def write_numpy(self, *, sync: bool = False) -> None:
        """Two files a piece by np.save."""
        for number, arrays in enumerate(self._arrays):
            named: dict[str, NDArray[Any]] = dict(zip(("ids", "vectors"), arrays, strict=True))
            for name, array in named.items():
                with (self._folder / f"{name}-{number}.npy").open("wb") as file:
                    np.save(file, array)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())

    def write_numpy_sync(self) -> None:
        """The same, on the disk when it returns, as what the store wrote is."""
        self.write_numpy(sync=True)

    def read_store(self) -> list[Arrays]:
        """By the store's own reader."""
        from mmvp_ray.search.space import read_vectors
        from mmvp_ray.store import PieceRef

        space = self._world.space
        return [read_vectors(self._store, space, PieceRef("rates", piece.name)) for piece in self._pieces]

    def read_numpy(self) -> list[Arrays]:
        """By np.load."""
        return [
            (np.load(self._folder / f"ids-{number}.npy"), np.load(self._folder / f"vectors-{number}.npy"))
            for number in range(len(self._arrays))
        ]

    def read_pyarrow(self) -> list[Arrays]:
        """By pyarrow.parquet.read_table, and to numpy with the least copying that pyarrow offers."""
        import pyarrow.parquet as pq

        from mmvp_ray.store import id_matrix

        found, folder = [], Path(self._store.root, "embeddings", SLUG, "rates")
        for piece in self._pieces:
            table = pq.read_table(folder / f"{piece.name}.parquet", use_threads=False)
            vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            found.append((id_matrix(table["image_id"]), vectors.reshape(-1, self._world.dim)))
        return found

    def check(self, read: list[Arrays]) -> None:
        """What was read is what was written."""
        for ours, theirs in zip(self._arrays, read, strict=True):
            # As bytes: what is no number would not equal itself.
            assert ours[0].tobytes() == theirs[0].tobytes() and ours[1].tobytes() == theirs[1].tobytes()

    def ways(self) -> dict[str, Callable[[], Any]]:
        """Every way, by name; those that write come first."""
        return {
            "write_store": self.write_store,
            "write_numpy": self.write_numpy,
            "write_numpy_sync": self.write_numpy_sync,
            "read_store": self.read_store,
            "read_numpy": self.read_numpy,
            "read_pyarrow": self.read_pyarrow,
        }


def rates(folder: Path, world: World, num_rounds: int) -> dict[str, Any]:
    """Seconds of every way and round, and the medians as vectors and MB a second."""
    bench = Bench(folder, world)
    seconds: dict[str, list[float]] = {name: [] for name in bench.ways()}
    # The first round warms up: imports, the page cache, the allocator.
    for number in range(num_rounds + 1):
        for name, way in bench.ways().items():
            started = time.perf_counter()
            found = way()
            passed = time.perf_counter() - started
            if number:
                seconds[name].append(passed)
            elif found is not None:
                bench.check(found)
    medians = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    return {
        "raw_bytes": bench.raw_bytes,
        "rounds": seconds,
        "vectors_per_second": {name: world.num_images / median for name, median in medians.items()},
        "mb_per_second": {name: bench.raw_bytes / 1e6 / median for name, median in medians.items()},
        "ratios": {
            f"{ours} / {theirs}": statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
            for ours, theirs in (
                ("write_store", "write_numpy"),
                ("write_store", "write_numpy_sync"),
                ("read_store", "read_numpy"),
                ("read_store", "read_pyarrow"),
            )
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=40_960, help="vectors, in pieces of 2,048")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument(
        "--pictures", type=int, default=4096, help="of the miniature world whose images tables are weighed"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for all files (default: the system's)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts, world = machine(), World(num_images=args.num_images, dim=args.dim)
    print(f"{facts['cpu']}, {facts['cores']} cores, load {facts['load_at_start']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mmvp-ray-store-", dir=args.scratch) as folder:
        sizes = images_bytes(Path(folder), args.pictures) | vectors_bytes(Path(folder), world)
        sizes["raw"] = ID_BYTES + 2.0 * world.dim
        for name, size in sizes.items():
            print(f"{name}: {size:,.2f}" + ("" if name.startswith(("pairs", "bytes")) else " bytes an image"))
        found = rates(Path(folder), world, args.rounds)
    for name, per_second in found["vectors_per_second"].items():
        print(f"{name}: {per_second:,.0f} vectors/s, {found['mb_per_second'][name]:,.0f} MB/s")
    for name, ratio in found["ratios"].items():
        print(f"speed of {name}: {ratio:.2f}")
    if args.json:
        results = {"machine": facts, "num_images": args.num_images, "dim": args.dim, "sizes": sizes, "rates": found}
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
