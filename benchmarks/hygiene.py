"""Out-of-core hygiene and the driver's bookkeeping: `python -m benchmarks.hygiene [--num-pairs N] [--num-pieces N] [--json FILE]`.

Two parts, each in a process of its own whose memory is sampled; what they read is made by further processes:

* pairs: one pass for counts, near-copies and hubs; blind pairs sorted, counted and written; hygiene; selection; what the tables say of it.
* pieces: what the driver does with a plan: listings, states, markers, census, blocks, the list of pieces.

Made up: N pairs in near_pairs and scores tables, through the store's own writer. Images form clusters of power-law size, 30 % of them are copies
of the one before; one image has up to 5,000 copies; 20 hubs have N / 2,000 pairs each. The ids are those of made-up hashes. For the pieces,
names in folders: hard links to a few real tables and markers, so that every listing and every reading is real, and the content repeats.
For the census, ids come from a generator instead of tables; 30 % of them occur a second time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PART_PAIRS = 2_000_000
NUM_HUBS = 20
MAX_COPIES = 5000
PIECES_PER_SHARD = 5
PIECE_IMAGES = 2000
LINKS_PER_FILE = 30_000
NUM_TABLES = 32
KEY, NEAR, FAR = "made-up", "near-encoder", "far-encoder"
LIMIT_BYTES = 4 << 30


def hashes(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """An image id, 16 bytes, for each number: as even and as unrelated as SHA-256 for what is measured here (splitmix64)."""
    from mmvp_ray.mine.id_words import ids_of

    words = np.empty((len(numbers), 2), dtype=np.uint64)
    for word in (0, 1):
        z = (numbers.astype(np.uint64) * np.uint64(2) + np.uint64(word + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[:, word] = z ^ (z >> np.uint64(31))
    return ids_of(words)


# Pairs


def make_pairs(root: str, num_pairs: int) -> None:
    """Write the parts of a near_pairs table and of a scores table, with their markers."""
    import pyarrow as pa

    from mmvp_ray.mine.id_words import sort_order, words_of
    from mmvp_ray.schema import NEAR_PAIRS, SCORES
    from mmvp_ray.store import DONE, id_array, open_store, write_marker, write_table

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


def measure_pairs(root: str, num_pairs: int, num_pieces: int, found: Any) -> None:
    """Everything that a run does with its near pairs, in this process."""
    from mmvp_ray.mine import (
        CopyFinder,
        CopyGroups,
        Degrees,
        RuleConfig,
        SelectConfig,
        Tally,
        clean,
        cluster_pairs,
        select,
        settle_rule,
    )
    from mmvp_ray.mine.random_pairs import RandomSample
    from mmvp_ray.pipeline import results
    from mmvp_ray.search import NearTable, PairTable, Space
    from mmvp_ray.search.table import Part
    from mmvp_ray.store import PieceRef, open_store

    store, out = open_store(root), f"{root}/out"
    made = json.loads(Path(root, "made.json").read_text())
    parts = tuple(Part(KEY, f"part-{number:05d}") for number in range(made["num_parts"]))
    table = PairTable(
        near=NearTable(store=store, space=Space(NEAR, 8), key=KEY, parts=parts, floor=0.93), far=Space(FAR, 8)
    )
    pieces = [PieceRef("laion", name) for name in piece_names(num_pieces)]
    rule = settle_rule(RuleConfig(), RandomSample(cos_near_P=np.empty(0), cos_far_P=np.empty(0)))
    config = SelectConfig()
    meter = Meter()

    with meter.stage("count, copies, hubs") as notes:
        tally, finder = Tally(rule), CopyFinder(floor=rule.floor)
        with Degrees(rule) as degrees:
            for batch in table.batches():
                tally.add(batch)
                finder.add(batch)
                degrees.add(batch)
            hub_keys, hub_degrees = degrees.hubs(config.hub_degree)
        copies = finder.groups()
        notes |= {
            "pairs": tally.num_above_floor,
            "near": tally.num_near,
            "blind": tally.num_blind,
            "images in groups": len(copies.keys_M),
            "hubs": len(hub_keys),
            "largest degree": int(hub_degrees[0]) if len(hub_degrees) else 0,
        }
    with meter.stage("write blind pairs") as notes:
        written = results.write_blind_pairs(store, out, NEAR, FAR, table.batches(), rule, pieces, CopyGroups.none())
        notes |= {"pairs": written.num_pairs, "images tables read": len(pieces)}
    with meter.stage("hygiene") as notes:
        blind = (batch.take(rule.blind(batch.cos_near_P, batch.cos_far_P)) for batch in table.batches())
        candidates = clean(blind, copies, np.sort(hub_keys), config, limit=1_000_000)
        notes |= {
            "left": candidates.num_pairs,
            "of copies": candidates.num_copies_out,
            "of hubs": candidates.num_hubs_out,
            "beyond caps": candidates.num_capped_out,
        }
    with meter.stage("select") as notes:
        head = candidates.pairs.take(np.arange(min(20_000, len(candidates.pairs))))
        vectors = np.random.default_rng(1).normal(size=(len(head), 64)).astype(np.float16)
        chosen = select(head, cluster_pairs(vectors, vectors, 50), 100, max_pairs_per_image=2)
        notes |= {"selected": len(chosen)}
    found.send(
        {
            "stages": meter.stages,
            "peak_bytes": max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, meter.peak_bytes),
        }
    )


# Pieces


def shards_of(num_pieces: int) -> list[Any]:
    """As many shards as a plan of so many pieces has."""
    from mmvp_ray.sources.piece import Shard

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
    import pyarrow as pa

    from mmvp_ray.schema import IMAGES, REJECTS
    from mmvp_ray.store import DONE, embeddings_table, open_store, write_marker, write_table

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


def measure_pieces(root: str, num_pairs: int, num_pieces: int, found: Any) -> None:
    """Everything that a driver does with a plan of pieces, in this process."""
    from mmvp_ray.embed import plan_work
    from mmvp_ray.pipeline import results
    from mmvp_ray.pipeline.corpora import Corpus
    from mmvp_ray.pipeline.funnel import count_images, run_pieces
    from mmvp_ray.search import census as census_module
    from mmvp_ray.search import take_census
    from mmvp_ray.search.blocks import cut_blocks
    from mmvp_ray.store import open_store

    store, out = open_store(root), f"{root}/out"
    shards = shards_of(num_pieces)
    meter = Meter()
    with meter.stage("plan_work") as notes:
        plan = plan_work(store, shards, [NEAR, FAR])
        notes |= {"shards": plan.num_shards, "left": len(plan.work), "pieces done": plan.num_pieces_done}
    with meter.stage("run_pieces") as notes:
        pieces = run_pieces(store, [Corpus(name="laion", url="/made-up", shards=tuple(shards))])
        notes |= {"pieces": len(pieces)}
    with meter.stage("count_images") as notes:
        counts = count_images(store, pieces, [NEAR, FAR])
        notes |= {"read": counts.num_read, "rejected": counts.num_rejected}
    with meter.stage("write_pieces"):
        results.write_pieces(out, pieces)
    with meter.stage("take_census") as notes:
        census_module._read_all = made_ids  # type: ignore[assignment]
        census = take_census(store, NEAR, pieces)
        notes |= {"rows": int(census.piece_rows.sum(dtype=np.int64)), "images": census.num_images}
    with meter.stage("cut_blocks") as notes:
        blocks = cut_blocks(census, 1_000_000)
        notes |= {"blocks": len(blocks)}
    found.send(
        {
            "stages": meter.stages,
            "peak_bytes": max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, meter.peak_bytes),
        }
    )


def made_ids(uris: Sequence[str]) -> Iterator[NDArray[np.uint8]]:
    """For each piece its ids; three in ten occur in an earlier piece too."""
    rng = np.random.default_rng(3)
    for number in range(len(uris)):
        images = np.arange(number * PIECE_IMAGES, (number + 1) * PIECE_IMAGES)
        again = rng.random(PIECE_IMAGES) < 0.3
        if number:
            images[again] = rng.integers(0, number * PIECE_IMAGES, int(again.sum()))
        yield hashes(images)


# Measuring


class Meter:
    """Seconds and peak memory of stages, and of the temporary files that they leave on the disk meanwhile."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []
        self.peak_bytes = 0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure what happens inside; notes go to the table."""
        import psutil

        process, done, peaks, notes = psutil.Process(), threading.Event(), [0, 0], dict[str, Any]()
        scratch = Path(tempfile.gettempdir())

        def watch() -> None:
            for look in itertools.count():
                peaks[0] = max(
                    peaks[0], process.memory_info().rss + sum(child.memory_info().rss for child in process.children())
                )
                if look % 20 == 0:
                    peaks[1] = max(peaks[1], sum(_num_bytes(file) for file in scratch.glob("mmvp-ray-*/**/*.rows")))
                if done.wait(0.1):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield notes
        finally:
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            done.set()
            watcher.join()
        self.peak_bytes = max(self.peak_bytes, peaks[0])
        self.stages.append(
            {
                "stage": name,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "peak_bytes": peaks[0],
                "scratch_bytes": peaks[1],
                **notes,
            }
        )
        told = ", ".join(f"{key} {value:,}" for key, value in notes.items())
        print(
            f"{name:20} {seconds:8.1f} s {cpu_seconds:8.1f} s {peaks[0] / 2**20:8,.0f} MiB {peaks[1] / 2**20:8,.0f} MiB   {told}",
            flush=True,
        )


def _num_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def in_process(work: Callable[..., None], *args: Any) -> Any:
    """What `work` sends, from a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(*args, there) if work.__name__.startswith("measure") else args)
    process.start()
    there.close()
    try:
        result = here.recv() if work.__name__.startswith("measure") else None
    except EOFError:
        result = None
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")
    return result


def main() -> None:
    """Make the tables, measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-pairs", type=int, default=100_000_000)
    parser.add_argument("--num-pieces", type=int, default=500_000)
    parser.add_argument("--only", choices=["pairs", "pieces"])
    parser.add_argument(
        "--folder", type=Path, help="where tables and temporary files go: 20 GB for 1e8 pairs, 30 GB for 500,000 pieces"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    figures: dict[str, Any] = {"cores": os.cpu_count(), "num_pairs": args.num_pairs, "num_pieces": args.num_pieces}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="hygiene-benchmark-") as root:
        scratch = Path(root, "scratch")
        scratch.mkdir()
        os.environ["TMPDIR"] = str(scratch)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        start = time.perf_counter()
        in_process(make_pairs, root, args.num_pairs if args.only != "pieces" else 1000)
        in_process(make_pieces, root, args.num_pieces)
        figures["made_seconds"] = time.perf_counter() - start
        print(f"made in {figures['made_seconds']:.0f} s")
        print(f"{'stage':20} {'time':>10} {'processor':>10} {'memory':>12} {'temporary':>12}")
        for part, work in {"pairs": measure_pairs, "pieces": measure_pieces}.items():
            if args.only in (None, part):
                figures[part] = in_process(work, root, args.num_pairs, args.num_pieces)
                peak = figures[part]["peak_bytes"]
                print(
                    f"{part}: peak memory {peak / 2**30:.2f} GiB of 4 GiB allowed: {'kept' if peak < LIMIT_BYTES else 'BROKEN'}"
                )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
