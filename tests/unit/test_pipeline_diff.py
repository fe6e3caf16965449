"""diff of two runs against plain set algebra: every blind pair once, told apart by whether the other run has its images."""

from __future__ import annotations

import base64
import dataclasses
import errno
import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.pipeline import changes, diff
from mmvp_ray.pipeline.changes import find_changes, merge
from mmvp_ray.pipeline.diff import diff_runs, write_diff
from mmvp_ray.pipeline.results import DIFF_HTML, DIFF_JSON, DIFF_TABLE, MANIFEST, PIECES_FILE, REPORT_JSON, blind_folder
from mmvp_ray.pipeline.run import Run, open_run
from mmvp_ray.pipeline.run_side import RunSide
from mmvp_ray.report.data import Blindness
from mmvp_ray.report.diff_data import CHANGES, RunDiff
from mmvp_ray.schema import BLIND_PAIRS, DIFF, IMAGES, PIECES
from mmvp_ray.search import PairBatch
from mmvp_ray.search.decide import exact_cosines
from mmvp_ray.sources.piece import image_id
from mmvp_ray.store import Store, embeddings_table, id_keys, open_store, read_table, write_table
from tests.shuffled import Shuffled, pass_by_tasks

_example = runpy.run_path(str(Path(__file__).with_name("test_report_example.py")))
NEAR_ABOVE, FAR_BELOW = 0.9, 0.3
NUM_IMAGES, DIM = 40, 8
RNG = np.random.default_rng(5)
CENTRES = RNG.normal(size=(5, DIM))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


VECTORS = {
    "near": unit(CENTRES[np.arange(NUM_IMAGES) % 5] + RNG.normal(scale=0.2, size=(NUM_IMAGES, DIM))),
    "far": unit(RNG.normal(size=(NUM_IMAGES, DIM))),
    "other": unit(RNG.normal(size=(NUM_IMAGES, DIM))),
}


def cosines_of_all(vectors: np.ndarray) -> np.ndarray:
    rows = np.arange(len(vectors))
    return exact_cosines(vectors, vectors, np.repeat(rows, len(rows)), np.tile(rows, len(rows))).reshape(len(rows), -1)


COSINES = {name: cosines_of_all(vectors) for name, vectors in VECTORS.items()}


def cosine(encoder: str, one: int, other: int) -> float:
    return float(COSINES[encoder][one, other])


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """An image file for each number; a blank one, so that none takes time."""
    from PIL import Image

    files = []
    for number in range(NUM_IMAGES):
        memory = pa.BufferOutputStream()
        with pa.PythonFile(memory, "w") as file:
            Image.new("RGB", (4, 4), (number, 90, 200)).save(file, "PNG")
        files.append(memory.getvalue().to_pybytes())
    return files


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
    """Making pictures takes most of the time."""
    monkeypatch.setattr(diff, "NUM_EXAMPLES", 2)


class World:
    """Runs over numbered images, written as a mining run writes them, with 7 pairs in a file."""

    def __init__(self, root: Path, pictures: list[bytes]) -> None:
        self.root, self.pictures = root, pictures
        self.ids = [image_id(data) for data in pictures]
        self.number = {key: number for number, key in enumerate(self.ids)}
        (root / "images").mkdir(parents=True)
        for number, data in enumerate(pictures):
            (root / "images" / f"{number}.png").write_bytes(data)

    def run(
        self, name: str, images: list[int], *, far: str = "far", store: str = "store", far_below: float = FAR_BELOW
    ) -> Run:
        home = open_store(str(self.root / store))
        pieces = [images[first : first + 16] for first in range(0, len(images), 16)]
        names = [f"{name}-{number:06d}" for number in range(len(pieces))]
        for piece, members in zip(names, pieces, strict=True):
            rows = [self.row(number) for number in members]
            write_table(home, storage.join(home.images("c"), f"{piece}.parquet"), pa.Table.from_pylist(rows, IMAGES))
            ids = np.frombuffer(b"".join(self.ids[number] for number in members), np.uint8).reshape(-1, 16)
            for encoder in ("near", far):
                uri = storage.join(home.embeddings(encoder, "c"), f"{piece}.parquet")
                write_table(home, uri, embeddings_table(ids, VECTORS[encoder][members]))
        out = str(self.root / name)
        listed = pa.table({"corpus": ["c"] * len(names), "piece": names}, schema=PIECES)
        write_table(Store(out), storage.join(out, PIECES_FILE), listed)
        near_pairs = [pair for pair in self.pairs(images) if cosine("near", *pair) > NEAR_ABOVE]
        blind = [pair for pair in near_pairs if cosine(far, *pair) < far_below]
        self.write_blind(out, far, [self.pair_row(far, *pair) for pair in blind])
        self.write_report(out, far, len(near_pairs), len(blind), far_below)
        storage.write_json(storage.join(out, MANIFEST), {"schema_version": 1, "store": home.root})
        return open_run(out)

    def pairs(self, images: list[int]) -> list[tuple[int, int]]:
        """All pairs, the smaller id first, in ascending order of their ids."""
        ordered = sorted(images, key=lambda number: self.ids[number])
        return list(itertools.combinations(ordered, 2))

    def row(self, number: int) -> dict[str, Any]:
        uri = str(self.root / "images" / f"{number}.png")
        return {
            "image_id": self.ids[number], "uri": uri, "member": f"{number}.png", "offset": 0,
            "num_bytes": len(self.pictures[number]), "width_px": 4, "height_px": 4, "caption": f"caption {number}",
        }  # fmt: skip

    def pair_row(self, far: str, one: int, other: int) -> dict[str, Any]:
        return {
            "image_id_a": self.ids[one], "image_id_b": self.ids[other], "cos_near": cosine("near", one, other),
            "cos_far": cosine(far, one, other), "num_copies_a": 1, "num_copies_b": 1,
        }  # fmt: skip

    def write_blind(self, out: str, far: str, rows: list[dict[str, Any]]) -> None:
        for part, first in enumerate(range(0, max(1, len(rows)), 7)):
            uri = storage.join(blind_folder(out, "near", far), f"part-{part:06d}.parquet")
            write_table(Store(out), uri, pa.Table.from_pylist(rows[first : first + 7], BLIND_PAIRS))

    def write_report(self, out: str, far: str, num_near: int, num_blind: int, far_below: float) -> None:
        report = _example["example_report"]()
        report = dataclasses.replace(
            report,
            near=dataclasses.replace(report.near, slug="near", fingerprint="near", dim=DIM),
            far=dataclasses.replace(report.far, slug=far, fingerprint=far, dim=DIM),
            rule=dataclasses.replace(report.rule, near_above=NEAR_ABOVE, far_below=far_below),
            blindness=Blindness.of(num_blind=num_blind, num_near=num_near),
            funnel=[],
            matrix=[],
            audit=None,
        )
        storage.write_bytes(storage.join(out, REPORT_JSON), report.to_json().encode())

    def expected(
        self, old: list[int], new: list[int], far_old: str, far_new: str, below_new: float
    ) -> dict[tuple, str]:
        """What set algebra says of each pair."""

        def blind(images: list[int], far: str, below: float) -> set[tuple[int, int]]:
            return {p for p in self.pairs(images) if cosine("near", *p) > NEAR_ABOVE and cosine(far, *p) < below}

        before, after = blind(old, far_old, FAR_BELOW), blind(new, far_new, below_new)
        told = dict.fromkeys(before & after, "still_blind")
        told |= {pair: "fixed" if set(pair) <= set(new) else "gone" for pair in before - after}
        return told | {pair: "new_blind" if set(pair) <= set(old) else "new_images" for pair in after - before}


@pytest.fixture
def world(tmp_path, pictures) -> World:
    return World(tmp_path, pictures)


OLD_IMAGES, NEW_IMAGES = list(range(30)), [number for number in range(NUM_IMAGES) if number not in (3, 17, 21)]


@pytest.mark.parametrize(
    ("far", "store", "far_below"),
    [("far", "store", FAR_BELOW), ("other", "store", FAR_BELOW), ("far", "another", 0.5), ("other", "another", 0.1)],
)
def test_every_blind_pair_is_told_as_set_algebra_tells_it(world, far, store, far_below):
    old = world.run("old", OLD_IMAGES)
    new = world.run("new", NEW_IMAGES, far=far, store=store, far_below=far_below)
    expected = world.expected(OLD_IMAGES, NEW_IMAGES, "far", far, far_below)
    found = write_diff(old.url, new)
    assert found == diff_runs(old, new) == RunDiff.from_json(Path(new.url, DIFF_JSON).read_text())
    assert {change: found.count(change) for change in CHANGES} == {
        change: sum(each == change for each in expected.values()) for change in CHANGES
    }
    table = read_table(storage.join(new.url, DIFF_TABLE))
    assert table.schema.equals(DIFF, check_metadata=True)
    rows = table.to_pylist()
    pairs = [(world.number[row["image_id_a"]], world.number[row["image_id_b"]]) for row in rows]
    assert dict(zip(pairs, [row["change"] for row in rows], strict=True)) == expected and len(pairs) == len(expected)
    assert pairs == sorted(pairs, key=lambda pair: (world.ids[pair[0]], world.ids[pair[1]]))
    for pair, row in zip(pairs, rows, strict=True):
        in_old, in_new = row["change"] in ("still_blind", "fixed", "gone"), "new" in row["change"]
        in_new |= row["change"] == "still_blind"
        known = [cosine("near", *pair), cosine("far", *pair)] if in_old else [None, None]
        known += [cosine("near", *pair), cosine(far, *pair)] if in_new else [None, None]
        assert [row[f"cos_{name}"] for name in ("near_old", "far_old", "near_new", "far_new")] == known


def test_all_five_changes_occur_in_the_world_of_these_tests(world):
    assert set(world.expected(OLD_IMAGES, NEW_IMAGES, "far", "other", FAR_BELOW).values()) == set(CHANGES)


def test_examples_show_both_runs_cosines_and_nothing_of_an_image_that_is_gone(world, monkeypatch):
    monkeypatch.setattr(diff, "NUM_EXAMPLES", 5)
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES, far="other", store="another")
    expected = world.expected(OLD_IMAGES, NEW_IMAGES, "far", "other", FAR_BELOW)
    found = write_diff(old.url, new)
    assert set(found.examples) == set(CHANGES) - {"gone"}
    for change, cards in found.examples.items():
        assert len(cards) == min(5, found.count(change)) > 0
        assert [card.rank for card in cards] == list(range(1, len(cards) + 1))
        gaps = []
        for card in cards:
            pair = tuple(world.number[bytes.fromhex(key)] for key in (card.image_id_a, card.image_id_b))
            assert expected[pair] == change
            before = [cosine("near", *pair), cosine("far", *pair)] if change != "new_images" else [None, None]
            after = [cosine("near", *pair), cosine("other", *pair)]
            assert [card.cos_near_old, card.cos_far_old, card.cos_near_new, card.cos_far_new] == [*before, *after]
            assert (card.caption_a, card.member_b) == (f"caption {pair[0]}", f"{pair[1]}.png")
            gaps.append(before[0] - before[1] if change == "fixed" else after[0] - after[1])
        assert gaps == sorted(gaps, reverse=True)
    page = Path(new.url, DIFF_HTML).read_text()
    assert page.count("data:image/webp") == 2 * sum(map(len, found.examples.values()))
    written = page + Path(new.url, DIFF_JSON).read_text()
    for number in (3, 17, 21):
        assert world.ids[number].hex() not in written and f"caption {number}<" not in written


def test_examples_do_not_repeat_an_image_while_others_are_left(world, monkeypatch):
    monkeypatch.setattr(diff, "NUM_EXAMPLES", 4)
    old, new = world.run("old", OLD_IMAGES), world.run("new", OLD_IMAGES)
    cards = diff_runs(old, new).examples["still_blind"]
    images = [key for card in cards for key in (card.image_id_a, card.image_id_b)]
    assert len(cards) == 4 and len(set(images)) == 8


def test_a_run_compared_with_itself_is_still_blind_and_writes_the_same_bytes_again(world):
    old = world.run("old", OLD_IMAGES)
    first = write_diff(old.url, old)
    assert first.num_still_blind == first.old.blindness.num_blind > 0 and first.notes == []
    written = {name: Path(old.url, name).read_bytes() for name in (DIFF_TABLE, DIFF_JSON, DIFF_HTML)}
    assert write_diff(old.url, old) == first
    assert written == {name: Path(old.url, name).read_bytes() for name in written}


def test_runs_without_blind_pairs(world):
    old, new = world.run("old", []), world.run("new", OLD_IMAGES)
    found = write_diff(old.url, new)
    assert found.num_new_images == found.new.blindness.num_blind > 0
    assert write_diff(new.url, old).num_gone == found.num_new_images
    assert read_table(storage.join(old.url, DIFF_TABLE)).num_rows == found.num_new_images


def test_what_a_takedown_took_is_counted_and_listed_nowhere(world):
    from mmvp_ray.store.takedown_record import TakedownRecord, write_record

    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES)
    taken = world.ids[3]
    write_record(Store(new.manifest["store"]), TakedownRecord(frozenset({(taken.hex(), taken)})), applied=True)
    found = write_diff(old.url, new)
    expected = world.expected(OLD_IMAGES, NEW_IMAGES, "far", "far", FAR_BELOW)
    hidden = sum(3 in pair for pair in expected)
    assert hidden > 0 and found.num_gone == sum(change == "gone" for change in expected.values()) > hidden
    assert any(f"{hidden:,} pairs of images that were taken down" in note for note in found.notes)
    table = read_table(storage.join(new.url, DIFF_TABLE)).to_pylist()
    assert len(table) == len(expected) - hidden
    assert all(taken not in (row["image_id_a"], row["image_id_b"]) for row in table)


def test_what_differs_between_the_runs_is_noted(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES, far="other", far_below=0.2)
    assert diff_runs(old, new).notes[0].startswith("The runs differ in the far encoder and far threshold:")


def test_missed_pairs_and_collapsed_copies_are_noted(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES)
    audit = json.loads(_example["example_report"]().to_json())["audit"]
    missed = {"num_found": 6_200, "recall": 6_200 / 6_204, "low": 0.998, "high": 0.9997}
    for run, found, collapse in ((old, audit, "none"), (new, audit | missed, "near")):
        uri = storage.join(run.url, REPORT_JSON)
        plain = storage.read_json(uri)
        plain["audit"], plain["rule"]["collapse"] = found, collapse
        storage.write_json(uri, plain)
    collapsed, missed_old, missed = diff_runs(old, new).notes
    assert "collapsed" in collapsed and missed_old.startswith("The earlier run found 99.984 % of the near pairs")
    assert missed.startswith(
        "The new run found 99.936 % of the near pairs (audited; 95 % interval 99.800 % to 99.970 %)"
    )
    assert "count as fixed" in missed


def test_centred_runs_are_compared_in_their_own_space(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", OLD_IMAGES, far="other")
    centre = VECTORS["other"][: OLD_IMAGES[-1]].mean(axis=0).astype(np.float16)
    manifest = storage.read_json(storage.join(new.url, MANIFEST))
    manifest["centres"] = {"other": base64.b64encode(centre.tobytes()).decode()}
    found = diff_runs(old, Run(new.url, manifest))
    assert found.notes[0].startswith("The runs differ in the far encoder and centre of the far vectors:")
    moved = VECTORS["other"].astype(np.float64) - centre.astype(np.float64)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    for card in found.examples["fixed"]:
        one, other = (world.number[bytes.fromhex(key)] for key in (card.image_id_a, card.image_id_b))
        assert card.cos_far_new == pytest.approx(moved[one] @ moved[other], abs=2e-3)
        assert abs(card.cos_far_new - cosine("other", one, other)) > 1e-4


def test_a_picture_that_cannot_be_read_again_is_left_out(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES)
    Path(world.root, "images").rename(world.root / "moved")
    write_diff(old.url, new)
    assert "data:image/webp" not in Path(new.url, DIFF_HTML).read_text()


def test_vectors_that_left_the_store_leave_cosines_unmeasured(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES, far="other")
    storage.remove_folder(open_store(new.manifest["store"]).embeddings("other", "c"))
    card = write_diff(old.url, new).examples["fixed"][0]
    assert card.cos_far_new is None and None not in (card.cos_near_new, card.cos_near_old, card.cos_far_old)
    assert "not measured" in Path(new.url, DIFF_HTML).read_text()


def test_a_report_of_another_run_is_refused(world):
    old, new = world.run("old", OLD_IMAGES), world.run("new", NEW_IMAGES)
    world.write_blind(old.url, "far", [world.pair_row("far", *world.pairs([0, 1])[0])])
    with pytest.raises(DataError, match="its tables and its report are not of one run"):
        diff_runs(old, new)


@pytest.mark.parametrize("pairs", [[(0, 1), (0, 1)], [(2, 1), (0, 1)]], ids=["twice", "falling"])
def test_pairs_out_of_order_are_refused(world, pairs):
    old, new = world.run("old", []), world.run("new", [])
    rank = sorted(range(3), key=lambda number: world.ids[number])
    rows = [world.pair_row("far", rank[one], rank[other]) for one, other in pairs]
    world.write_blind(old.url, "far", rows)
    with pytest.raises(DataError, match="ascending order"):
        diff_runs(old, new)


def test_a_full_disk_is_named(world, monkeypatch):
    old = world.run("old", OLD_IMAGES)

    class Full:
        def __init__(self, *args, **more): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def write_table(self, table):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(diff.pq, "ParquetWriter", Full)
    with pytest.raises(ResourceError, match="set TMPDIR to a larger disk"):
        write_diff(old.url, old)
    assert not Path(old.url, DIFF_TABLE).exists()


def test_no_earlier_run(world, tmp_path):
    new = world.run("new", [])
    with pytest.raises(ConfigError, match="expected a finished run"):
        write_diff(str(tmp_path / "nowhere"), new)


class Listed:
    """A side whose pairs come in given batches."""

    def __init__(self, pairs: list[tuple[bytes, bytes]], batch_rows: int, cosine: float) -> None:
        self.folder, self.pairs, self.batch_rows, self.cosine = "here", sorted(pairs), batch_rows, cosine
        self.pieces, self.images = (), {key for pair in pairs for key in pair}

    def batches(self):
        for first in range(0, len(self.pairs), self.batch_rows):
            part = self.pairs[first : first + self.batch_rows]
            ids = [np.frombuffer(b"".join(pair[side] for pair in part), np.uint8).reshape(-1, 16) for side in (0, 1)]
            values = np.full(len(part), self.cosine)
            yield PairBatch(ids_a_P16=ids[0], ids_b_P16=ids[1], cos_near_P=values, cos_far_P=-values)


# Ids that end in zero bytes, which numpy drops when it hands a text to Python.
KEYS = [bytes([number]) + bytes(15) for number in range(5)] + [b"\x01" * 15 + bytes([number]) for number in range(3)]
PAIRS = st.sets(st.sampled_from([(a, b) for a in KEYS for b in KEYS if a < b]))


@settings(max_examples=60)
@given(PAIRS, PAIRS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_the_merge_meets_every_pair_once_whatever_the_batches(old, new, rows_old, rows_new, max_asked):
    before, after = Listed(list(old), rows_old, 0.25), Listed(list(new), rows_new, 0.5)
    found = [
        (a.tobytes(), b.tobytes(), old_cos, new_cos)
        for batch in merge(before, after)
        for a, b, old_cos, new_cos in zip(*batch.ids(), batch.near_old_P, batch.far_new_P, strict=True)
    ]
    assert [(a, b) for a, b, _, _ in found] == sorted(old | new)
    assert {(a, b) for a, b, cos, _ in found if cos == 0.25} == old
    assert {(a, b) for a, b, _, cos in found if cos == -0.5} == new

    def missing(side, ids_M, *, session):
        return ids_M[[key.ljust(16, b"\0") not in side.images for key in ids_M.tolist()]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "missing", missing)
        told = {
            (a.tobytes(), b.tobytes()): CHANGES[code]
            for batch in find_changes(before, after, session=Inline(), max_asked=max_asked)
            for a, b, code in zip(*batch.ids(), batch.code_P, strict=True)
        }
    expected = dict.fromkeys(old & new, "still_blind")
    expected |= {pair: "fixed" if set(pair) <= after.images else "gone" for pair in old - new}
    expected |= {pair: "new_blind" if set(pair) <= before.images else "new_images" for pair in new - old}
    assert told == expected


def test_ids_are_looked_up_in_all_pieces(world, monkeypatch):
    pass_by_tasks(monkeypatch, 2)
    run = world.run("old", OLD_IMAGES)
    side = RunSide(run).side
    wanted = np.unique(id_keys(np.frombuffer(b"".join(world.ids), np.uint8).reshape(-1, 16)))
    session = Shuffled()
    lost = {key.ljust(16, b"\0") for key in changes.missing(side, wanted, session=session).tolist()}
    assert lost == set(world.ids[30:])
    assert session.num_tasks == 0, "other nodes do not see this machine's disk"
    assert json.loads(Path(run.url, MANIFEST).read_text())["store"] == side.store.root
