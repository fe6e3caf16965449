"""What was taken down is in no table any more, whatever named it and whatever stopped the work; all else is as if it had never been there."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmvp_ray import schema, storage
from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ConfigError, DataError, ResourceError
from mmvp_ray.pipeline import Progress, mine_pairs
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.takedown import is_due, take_down
from mmvp_ray.search import PairTable, Space, choose_method, find_near_pairs, score_pairs
from mmvp_ray.search.config import SearchConfig
from mmvp_ray.sources.piece import Piece, Reject, Shard
from mmvp_ray.store import (
    DONE,
    PieceRef,
    Store,
    TakedownResult,
    apply_takedown,
    commit_embeddings,
    commit_images,
    id_array,
    is_applied,
    open_store,
    read_record,
    read_table,
    read_takedown_list,
    refusals,
    takedown,
    write_marker,
    write_table,
)
from mmvp_ray.store.takedown import MADE_AGAIN
from mmvp_ray.store.takedown_record import TakedownRecord, write_record
from mmvp_ray.store.verify import verify

SILENT = Progress(stream=None)
NEAR, FAR, OTHER = Space("near-x", 6), Space("far-y", 5), Space("far-z", 4)
NUM = 40
PIECES = {("a", 0): range(16), ("a", 1): range(12, 30), ("b", 0): [*range(28, 40), 3]}
"""Images of each piece of two corpora; some lie in two."""
NONFINITE = 7
"""An image without a finite vector in NEAR."""


def ids() -> np.ndarray:
    found = np.random.default_rng(1).integers(0, 256, (NUM, 16), dtype=np.uint8)
    # numpy's fixed-length texts lose trailing zero bytes.
    found[5, -3:] = 0
    found[6, :] = 0
    return found


IDS = ids()
KEYS = [row.tobytes() for row in IDS]


def url_of(number: int) -> str:
    # Two images were found at one URL at different times.
    return f"https://example.org/{number if number != 22 else 21}.jpg"


def vectors(space: Space) -> np.ndarray:
    rng = np.random.default_rng(space.dim)
    found = rng.normal(size=(4, space.dim))[np.arange(NUM) % 4] + 0.3 * rng.normal(size=(NUM, space.dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def image_row(number: int, uri: str) -> dict[str, Any]:
    return {
        "image_id": KEYS[number], "uri": uri, "member": f"{number}.jpg", "offset": number, "num_bytes": 9, "width_px": 4,
        "height_px": 5, "caption": f"caption {number}", "label": None, "url": url_of(number) if number % 4 else None,
        "license": None, "metadata": "{}",
    }  # fmt: skip


def taken_down(number: int, uri: str) -> Reject:
    return Reject(uri=uri, member=f"{number}.jpg", reason="taken_down", detail="on the takedown record of this store")


def commit(store: Store, absent: Iterable[int] = ()) -> list[PieceRef]:
    """Commit all pieces; images of `absent` are rejected, as embedding does with those that were taken down."""
    absent, refs = set(absent), []
    for (corpus, index), numbers in PIECES.items():
        shard = Shard(corpus=corpus, kind="tar", uri=f"/{corpus}.tar", num_bytes=1, etag="e")
        piece = Piece(shard=shard, index=index, last=(corpus, index) != ("a", 0), samples=(), rejects=())
        there = [number for number in numbers if number not in absent]
        places = sorted((f"{number}.jpg", number) for number in numbers if number in absent)
        broken = Reject(uri=shard.uri, member="broken.jpg", reason="corrupt", detail="bad")
        rejects = [broken, *(taken_down(number, shard.uri) for _, number in places)]
        commit_images(store, piece, [image_row(number, shard.uri) for number in there], rejects)
        for space in (NEAR, FAR, OTHER):
            lost = [number for number in there if number == NONFINITE and space is NEAR]
            rows = np.array([number for number in there if number not in lost], dtype=int)
            commit_embeddings(
                store, piece, space.slug, IDS[rows], vectors(space)[rows],
                [Reject(uri=shard.uri, member=f"{n}.jpg", reason="nonfinite_vector", detail="encoder near-x") for n in lost],
            )  # fmt: skip
        refs.append(PieceRef(corpus, piece.name))
    return refs


def join(store: Store, pieces: list[PieceRef]) -> list[PairTable]:
    """Near pairs of the first piece, then of all, built on them; scored in two spaces."""
    method = choose_method(SearchConfig(engine="exact"), num_images=NUM, device="cpu")
    find_near_pairs(store, NEAR, pieces[:1], floor=0.5, method=method, device="cpu", session=Inline())
    table, _ = find_near_pairs(store, NEAR, pieces, floor=0.5, method=method, device="cpu", session=Inline())
    for far in (FAR, OTHER):
        score_pairs(table, far, pieces, session=Inline())
    return [PairTable(near=table, far=far) for far in (FAR, OTHER)]


def pairs_of(store: Store) -> list[dict[tuple[bytes, bytes], tuple[float, float]]]:
    """The pairs as a run sees them: joined and scored as far as they are not there."""
    pieces = [
        PieceRef(corpus, name.removesuffix(DONE))
        for corpus in ("a", "b")
        for name in storage.list_names(store.images(corpus))
        if name.endswith(DONE)
    ]
    found = []
    for table in join(store, pieces):
        pairs = {}
        for batch in table.batches():
            sides = [[row.tobytes() for row in ids] for ids in (batch.ids_a_P16, batch.ids_b_P16)]
            pairs |= dict(
                zip(zip(*sides, strict=True), zip(batch.cos_near_P, batch.cos_far_P, strict=True), strict=True)
            )
        found.append(pairs)
    return found


def group_table(store: Store, key: str, groups: dict[int, int], *, marked: bool = True) -> None:
    table = pa.Table.from_arrays(
        [id_array(IDS[list(groups)]), id_array(IDS[list(groups.values())]), pa.array([2] * len(groups))],
        schema=schema.COPIES,
    )
    entry = write_table(store, storage.join(store.copies(key), "copies.parquet"), table)
    if marked:
        write_marker(storage.join(store.copies(key), "copies" + DONE), files=[entry], rule="r")


def near_table(store: Store, key: str, facts: dict[str, Any] | None) -> None:
    """A table of near pairs with one part and its scores; `facts` as in table.json, none for a join that was not finished."""
    two = [id_array(IDS[[30]]), id_array(IDS[[31]])]
    for folder, columns, kind in (
        (store.near_pairs(NEAR.name, key), [*two, pa.array([0.9])], schema.NEAR_PAIRS),
        (store.scores(FAR.name, NEAR.name, key), [*two, pa.array([0.1])], schema.SCORES),
    ):
        entry = write_table(store, storage.join(folder, "p.parquet"), pa.Table.from_arrays(columns, schema=kind))
        write_marker(storage.join(folder, "p" + DONE), files=[entry])
    if facts is not None:
        storage.write_json(
            storage.join(store.near_pairs(NEAR.name, key), "table.json"),
            {
                "pieces_key": key, "num_pieces": 1, "floor": 0.9, "collapse": "c", "copies_key": None, "method": "m",
                "parts": [[key, "p"]], "facts": {},
            } | facts,
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Hundreds of small files: nobody pulls the plug here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything in it."""
    root = tmp_path_factory.mktemp("takedown") / "store"
    store = open_store(str(root))
    join(store, commit(store))
    group_table(store, "touched", {2: 2, 4: 2})
    group_table(store, "apart", {34: 34, 35: 34})
    group_table(store, "unfinished", {34: 34}, marked=False)
    hubs = pa.Table.from_arrays([id_array(IDS[[2, 9]]), pa.array([9, 8])], schema=schema.HUBS)
    write_table(store, storage.join(store.hubs("h"), "hubs.parquet"), hubs)
    for name in ("routed", "cells", "indexes"):
        storage.write_bytes(storage.join(store.root, name, "near-x", "file"), KEYS[2])
    return root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Store:
    shutil.copytree(whole, tmp_path / "store")
    return open_store(str(tmp_path / "store"))


def contents(root: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("*")) if path.is_file()}


def ids_anywhere(root: str | Path) -> Iterator[bytes]:
    """Every image id in every column of every Parquet file, read with pyarrow alone; but for the record itself."""
    for path in sorted(Path(root).rglob("*.parquet")):
        if path.name != "takedown.parquet":
            table = pq.read_table(path)
            for field in table.schema:
                if field.type == pa.binary(16):
                    yield from table.column(field.name).to_pylist()


def taken(store: Store, tmp_path: Path, *lines: str) -> TakedownResult:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    return apply_takedown(store, str(path))


class TestList:
    def test_ids_urls_comments_and_blank_lines(self, tmp_path: Path) -> None:
        one, two = "0123456789abcdef" * 2, "FEDCBA9876543210" * 2
        path = tmp_path / "list.txt"
        path.write_bytes(
            "\N{BOM}# a request\r\n\r\n  {one}  # ticket 12\r\n{two}\r\n\thttp://x.org/a b.jpg?c=1#part\r\ns3://b/k.jpg # why\r\n{two}\r\n".replace(
                "{one}", one
            )
            .replace("{two}", two)
            .encode()
        )
        found = read_takedown_list(str(path))
        assert found.ids == (bytes.fromhex(one), bytes.fromhex(two))
        assert found.urls == ("http://x.org/a b.jpg?c=1#part", "s3://b/k.jpg")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"x" * 31, "expected an image id of 32 hex digits or a URL, found 'x+' in line 1 of"),
            (b"# fine\n" + b"ab" * 15 + b"a\n", "in line 2 of"),
            (b"\xff\xfe", "expected a UTF-8 text"),
            (None, "found no file at"),
        ],
    )
    def test_what_cannot_be_used_is_refused_before_anything_is_done(
        self, store: Store, tmp_path: Path, data: bytes | None, message: str
    ) -> None:
        path = tmp_path / "list.txt"
        if data is not None:
            path.write_bytes(data)
        before = contents(store.root)
        with pytest.raises(ConfigError, match=message):
            apply_takedown(store, str(path))
        assert contents(store.root) == before

    def test_an_empty_list_does_nothing(self, store: Store, tmp_path: Path) -> None:
        before = contents(store.root)
        found = taken(store, tmp_path, "# nobody")
        assert (found.num_listed, found.num_images, found.num_rows_removed, found.removed) == (0, 0, 0, ())
        assert contents(store.root) == before


def lines_for(numbers: Iterable[int]) -> list[str]:
    return [KEYS[number].hex() for number in numbers]


SETS = [{3, 5, 6, 29, NONFINITE}, set(range(0, NUM, 3)), set(range(NUM))]


@pytest.mark.parametrize("gone", SETS, ids=str)
def test_no_table_holds_them_and_the_rest_is_as_if_they_had_never_been_there(
    store: Store, tmp_path: Path, gone: set[int]
) -> None:
    expected = open_store(str(tmp_path / "scratch"))
    commit(expected, gone)
    found = taken(store, tmp_path, *lines_for(gone))
    assert {row.tobytes() for row in found.ids_M16} == {KEYS[number] for number in gone}
    assert (found.num_listed, found.num_images, found.unknown) == (len(gone), len(gone), ())
    left = set(ids_anywhere(store.root))
    assert left <= {KEYS[number] for number in range(NUM) if number not in gone}
    assert verify(store.root).problems == []
    # Tables of images, rejects and vectors, and all their markers, are the same to the last byte.
    mine, scratch = contents(store.root), contents(expected.root)
    assert len(scratch) > 12
    assert {name: data for name, data in mine.items() if name.startswith(("corpora", "embeddings"))} == {
        name: data for name, data in scratch.items() if name != "store.json"
    }
    pairs = pairs_of(store)
    assert pairs == pairs_of(expected)
    assert len(gone) > 30 or pairs[0]


def test_pairs_that_are_left_are_not_joined_or_scored_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables() -> set[str]:
        return {name for name in contents(store.root) if name.startswith(("near_pairs", "scores"))}

    before = tables()
    found = taken(store, tmp_path, *lines_for([2]))
    assert len(before) > 8 and tables() == before
    assert found.num_rows_removed > 5 and found.num_tables_changed > 5

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(storage, "write_bytes", forbidden)
    assert len(pairs_of(store)) == 2


class TestUrls:
    def test_a_url_stands_for_every_image_seen_there_wherever_else_it_lies(self, store: Store, tmp_path: Path) -> None:
        found = taken(store, tmp_path, url_of(21), url_of(29), "https://example.org/never.jpg", "00" * 15 + "01")
        assert {row.tobytes() for row in found.ids_M16} == {KEYS[21], KEYS[22], KEYS[29], bytes(15) + b"\1"}
        assert found.unknown == ("00" * 15 + "01", "https://example.org/never.jpg")
        assert not {KEYS[21], KEYS[22], KEYS[29]} & set(ids_anywhere(store.root))
        assert verify(store.root).problems == []
        for path in (Path(store.root) / "corpora").rglob("*.parquet"):
            assert not {url_of(21), url_of(29)} & set(str(pq.read_table(path).to_pylist()).split("'"))

    def test_an_image_without_url_is_nobodys(self, store: Store, tmp_path: Path) -> None:
        assert image_row(4, "")["url"] is None
        assert taken(store, tmp_path, url_of(4)).num_images == 0

    def test_the_record_refuses_ids_and_urls_for_good(self, store: Store, tmp_path: Path) -> None:
        assert not refusals(store)
        taken(store, tmp_path, url_of(29), *lines_for([5, 6]))
        taken(store, tmp_path, "https://example.org/later.jpg", *lines_for([8]))
        refused = refusals(store)
        assert all(refused.refuses(KEYS[number]) for number in (5, 6, 8, 29))
        assert not any(refused.refuses(KEYS[number]) for number in range(NUM) if number not in (5, 6, 8, 29))
        assert refused.refuses_url(url_of(29)) and refused.refuses_url("https://example.org/later.jpg")
        assert not refused.refuses_url(url_of(30)) and not refused.refuses_url(None)

    def test_the_order_of_requests_does_not_matter(self, whole: Path, tmp_path: Path) -> None:
        trees = []
        for order in ([[url_of(29), *lines_for([5])], lines_for([2, 3])], [lines_for([3, 2, 5]), [url_of(29)]]):
            shutil.copytree(whole, tmp_path / "store")
            store = open_store(str(tmp_path / "store"))
            for lines in order:
                taken(store, tmp_path, *lines)
            trees.append(contents(store.root))
            shutil.rmtree(tmp_path / "store")
        assert trees[0] == trees[1]


class TestDerived:
    def test_caches_and_hubs_are_removed_with_the_first_row_and_then_left_alone(
        self, store: Store, tmp_path: Path
    ) -> None:
        found = taken(store, tmp_path, *lines_for([9]))
        assert {"cells", "hubs", "indexes", "routed"} <= set(found.removed)
        for name in ("routed", "cells", "indexes"):
            storage.write_bytes(storage.join(store.root, name, "near-x", "file"), b"made again")
        before = contents(store.root)
        again = taken(store, tmp_path, *lines_for([9]))
        assert (again.num_listed, again.num_rows_removed, again.removed, again.unknown) == (1, 0, (), ())
        assert taken(store, tmp_path, "12" * 16).removed == ()
        assert {name: data for name, data in contents(store.root).items() if not name.startswith("takedown")} == {
            name: data for name, data in before.items() if not name.startswith("takedown")
        }

    def test_groups_with_a_removed_member_go_with_the_pairs_that_rest_on_them(
        self, store: Store, tmp_path: Path
    ) -> None:
        near_table(store, "rests", {"copies_key": "touched"})
        near_table(store, "rests-apart", {"copies_key": "apart"})
        near_table(store, "child", {"copies_key": "apart", "parts": [["rests", "p"], ["child", "p"]]})
        near_table(store, "plain", {})
        near_table(store, "cut-short", None)
        found = taken(store, tmp_path, *lines_for([4]))
        gone = {
            f"{table}/near-x/{key}"
            for table in ("near_pairs", "scores/far-y")
            for key in ("rests", "child", "cut-short")
        }
        assert set(found.removed) == gone | {
            "copies/touched",
            "copies/unfinished",
            "cells",
            "hubs",
            "indexes",
            "routed",
        }
        kept = storage.list_folders(storage.join(store.root, "near_pairs", "near-x"))
        assert {"rests-apart", "plain"} <= set(kept) and len(kept) == 4
        assert storage.list_folders(store.copies("")) == ["apart"]
        assert storage.list_folders(storage.join(store.root, "scores", "far-y", "near-x")) == kept
        assert verify(store.root).problems == []


class Killer:
    """Lets the first writes and removals through and dies at all that follow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.num_done, self._limit, self._lock = 0, limit, threading.Lock()
        for name in ("write_bytes", "remove", "remove_folder"):
            monkeypatch.setattr(storage, name, self._wrap(getattr(storage, name)))

    def _wrap(self, work: Any) -> Any:
        def wrapped(*args: Any) -> None:
            with self._lock:
                if self.num_done >= self._limit:
                    raise KeyboardInterrupt
                self.num_done += 1
            work(*args)

        return wrapped


@pytest.mark.parametrize("limit", [1, 2, 30])
def test_killed_in_the_middle_and_called_again(
    store: Store, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    lines = [*lines_for([3, 4, NONFINITE]), url_of(29)]
    other = open_store(str(shutil.copytree(whole, tmp_path / "other")))
    taken(other, tmp_path, *lines)
    with monkeypatch.context() as patch:
        Killer(patch, limit)
        with pytest.raises(KeyboardInterrupt):
            taken(store, tmp_path, *lines)
    if limit == 1:
        assert contents(store.root) == contents(whole)
        taken(store, tmp_path, *lines)
    else:
        assert any("expected a finished takedown" in text for text in verify(store.root).problems)
        assert not is_applied(store)
        apply_takedown(store)
    assert contents(store.root) == contents(other.root)
    assert verify(store.root).problems == []


def test_a_longer_list_after_a_kill(store: Store, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Killer(patch, 25)
        with pytest.raises(KeyboardInterrupt):
            taken(store, tmp_path, *lines_for([3]))
    taken(store, tmp_path, *lines_for([3, 14, 28]))
    other = open_store(str(shutil.copytree(whole, tmp_path / "other")))
    taken(other, tmp_path, *lines_for([3, 14, 28]))
    assert contents(store.root) == contents(other.root)


class TestLostLease:
    """Another run had the store meanwhile: what it recorded stays, and nothing more is done."""

    def test_a_takedown_of_another_run_is_not_written_over(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "slept.txt").write_text("\n".join(lines_for([3])))
        resolve, lost = takedown._resolve, []

        def slept(*given: Any) -> Any:
            monkeypatch.setattr(takedown, "_resolve", resolve)
            taken(store, tmp_path, *lines_for([4]))
            lost.append(True)
            return resolve(*given)

        def confirm() -> None:
            if lost:
                raise ResourceError("lost")

        monkeypatch.setattr(takedown, "_resolve", slept)
        with pytest.raises(ResourceError, match="lost"):
            apply_takedown(store, str(tmp_path / "slept.txt"), confirm=confirm)
        assert {image for _, image in read_record(store).rows} == {ids()[4].tobytes()}
        assert is_applied(store) and verify(store.root).problems == []

    @pytest.mark.parametrize("num_confirmed", range(4))
    def test_it_ends_where_it_was_lost_and_the_next_call_goes_on(
        self, store: Store, whole: Path, tmp_path: Path, num_confirmed: int
    ) -> None:
        (tmp_path / "list.txt").write_text("\n".join(lines_for([3, 4])))
        asked: list[dict[str, bytes]] = []

        def confirm() -> None:
            asked.append(contents(store.root))
            if len(asked) > num_confirmed:
                raise ResourceError("lost")

        with pytest.raises(ResourceError, match="lost"):
            apply_takedown(store, str(tmp_path / "list.txt"), confirm=confirm)
        # What threads had begun is all that came after.
        assert not contents(store.root).keys() - asked[num_confirmed].keys()
        assert num_confirmed > 0 or contents(store.root) == contents(whole)
        apply_takedown(store, str(tmp_path / "list.txt"))
        other = open_store(str(shutil.copytree(whole, tmp_path / "other")))
        taken(other, tmp_path, *lines_for([3, 4]))
        assert contents(store.root) == contents(other.root)


class TestBroken:
    def break_one(self, store: Store, pattern: str) -> Path:
        path = next(
            path
            for path in sorted(Path(store.root).rglob(pattern))
            if KEYS[3] in pq.read_table(path).column(0).to_pylist()
        )
        data = bytearray(path.read_bytes())
        at = data.index(vectors(NEAR)[3].tobytes()) if "embeddings" in str(path) else len(data) // 3
        data[at] ^= 1
        path.write_bytes(bytes(data))
        return path

    def test_damage_is_not_marked_as_sound_and_does_not_keep_the_others(self, store: Store, tmp_path: Path) -> None:
        path = self.break_one(store, "embeddings/near-x/**/*.parquet")
        with pytest.raises(
            DataError, match=rf"expected the content that its marker names, .*{path.name}; remove it and"
        ):
            taken(store, tmp_path, *lines_for([3]))
        assert not is_applied(store)
        assert list(ids_anywhere(store.root)).count(KEYS[3]) == 1
        path.unlink()
        path.with_name(path.name.replace(".parquet", DONE)).unlink()
        apply_takedown(store)
        assert verify(store.root).problems == [] and KEYS[3] not in set(ids_anywhere(store.root))

    def test_no_parquet_at_all(self, store: Store, tmp_path: Path) -> None:
        path = sorted(Path(store.root).glob("near_pairs/near-x/*/*-0*.parquet"))[0]
        path.write_bytes(b"this is no Parquet file")
        with pytest.raises(
            DataError, match=rf"{path.name} .*; remove .*near_pairs/near-x/{path.parent.name} and scores/\*/near-x"
        ):
            taken(store, tmp_path, *lines_for([2, 3]))
        path.unlink()
        assert not {KEYS[2], KEYS[3]} & set(ids_anywhere(store.root))

    def test_what_a_killed_run_left_loses_its_rows_too(self, store: Store, tmp_path: Path) -> None:
        for marker in [
            *Path(store.root).glob("corpora/a/images/*.done.json"),
            *Path(store.root).glob("embeddings/*/a/*.done.json"),
        ]:
            marker.unlink()
        taken(store, tmp_path, *lines_for([1, NONFINITE, 14]))
        assert not {KEYS[1], KEYS[NONFINITE], KEYS[14]} & set(ids_anywhere(store.root))
        assert verify(store.root).problems == []


class TestVerify:
    def test_it_finds_an_image_of_the_record_with_or_without_a_marker(self, store: Store) -> None:
        write_record(store, TakedownRecord(frozenset({(KEYS[9].hex(), KEYS[9])})), applied=True)
        problems = [text for text in verify(store.root).problems if "expected no image that was taken down" in text]
        assert any("images" in text for text in problems) and any("hubs" in text for text in problems)
        assert len(problems) == len(verify(store.root).problems)
        apply_takedown(store)
        assert verify(store.root).problems == problems

    def test_it_finds_a_record_that_was_changed(self, store: Store, tmp_path: Path) -> None:
        taken(store, tmp_path, *lines_for([9]))
        assert verify(store.root).unmarked == []
        path = Path(store.takedown)
        path.write_bytes(path.read_bytes()[:-9])
        assert any(store.takedown in text for text in verify(store.root).problems)


def make_runs(tmp_path: Path) -> list[Path]:
    """Two folders of runs that show images 2 and 3."""
    runs = [tmp_path / "out", tmp_path / "earlier"]
    for run in runs:
        pair = pa.table({"image_id_a": [KEYS[2]], "image_id_b": [KEYS[3]]}).cast(
            pa.schema([schema.BLIND_PAIRS.field(0), schema.BLIND_PAIRS.field(1)], schema.BLIND_PAIRS.metadata)
        )
        write_table(Store(str(run)), str(run / "blind_pairs" / "part.parquet"), pair)
        (run / "manifest.json").write_text("{}")
        (run / "report.html").write_text("")
    return runs


def take_down_and_die(store: Store, out: Path, listed: Path, others: Iterable[Path] = ()) -> None:
    """As `take_down`, killed when the store is done and the first run is not."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmvp_ray.pipeline.takedown.apply_takedown_to_run", killed)
        with pytest.raises(KeyboardInterrupt):
            take_down(store, str(out), str(listed), SILENT, other_urls=[*map(str, others)])


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("goes_on_in", ["the same", "another"])
def test_killed_when_the_store_is_done_and_the_runs_are_not(
    store: Store, tmp_path: Path, is_known: bool, goes_on_in: str
) -> None:
    if is_known:
        # The store was rid of the image before; only the runs are left to do.
        taken(store, tmp_path, KEYS[3].hex())
    out, *others = runs = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    take_down_and_die(store, out, tmp_path / "list.txt", others)
    assert KEYS[3] not in set(ids_anywhere(store.root)) and is_due(store, None)
    # A run as it is made every night, without the list.
    next_out = str(out if goes_on_in == "the same" else tmp_path / "next")
    assert take_down(store, next_out, None, SILENT) is not None
    for run in runs:
        assert KEYS[3] not in set(ids_anywhere(run))
        assert {path.name for path in run.iterdir()} == {"blind_pairs"}
    assert take_down(store, next_out, None, SILENT) is None and not is_due(store, None)
    assert not list(Path(store.root).glob("takedown.runs*")) and verify(store.root).problems == []


def test_killed_before_the_store_is_done_its_runs_are_known(store: Store, tmp_path: Path) -> None:
    out, *_ = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmvp_ray.store.takedown._take_out", killed)
        with pytest.raises(KeyboardInterrupt):
            take_down(store, str(out), str(tmp_path / "list.txt"), SILENT)
    take_down(store, str(tmp_path / "next"), None, SILENT)
    assert KEYS[3] not in set(ids_anywhere(store.root)) | set(ids_anywhere(out))
    assert not (out / "report.html").exists()


def test_a_run_whose_folder_is_away_is_cleaned_when_it_is_back(store: Store, tmp_path: Path) -> None:
    out, *_ = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    take_down_and_die(store, out, tmp_path / "list.txt")
    away = out.rename(tmp_path / "unmounted")
    take_down(store, str(tmp_path / "next"), None, SILENT)
    # Nothing to wait for, and nothing to hold the lease for.
    assert not is_due(store, None)
    away.rename(out)
    assert take_down(store, str(tmp_path / "next"), None, SILENT) is not None
    assert KEYS[3] not in set(ids_anywhere(out)) and not (out / "report.html").exists()


def test_a_run_that_nobody_here_may_look_at_stops_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, theirs = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    take_down_and_die(store, theirs, tmp_path / "list.txt")
    real, notes = storage.is_folder, []

    def is_folder(url: str) -> bool:
        if url == str(theirs):
            raise ConfigError(f"expected permission, found none for {url}")
        return real(url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "is_folder", is_folder)
        patch.setattr(Progress, "note", lambda self, text: notes.append(text))
        assert take_down(store, str(out), None, SILENT) is not None
        assert not is_due(store, None) and take_down(store, str(out), None, SILENT) is None
    assert [note for note in notes if f"did not clean the run in {theirs}" in note]
    assert KEYS[3] not in set(ids_anywhere(out)) and (theirs / "report.html").exists()
    # Whoever may comes next.
    assert take_down(store, str(tmp_path / "next"), None, SILENT) is not None
    assert KEYS[3] not in set(ids_anywhere(theirs)) and not (theirs / "report.html").exists()


def test_weekly_runs_that_moved_with_their_store_are_cleaned(store: Store, tmp_path: Path) -> None:
    runs = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    take_down_and_die(store, runs[0], tmp_path / "list.txt", runs[1:])
    moved = [run.rename(tmp_path / f"moved-{run.name}") for run in runs]
    assert verify(store.root).problems and is_due(store, None)
    take_down(store, str(moved[0]), None, SILENT, other_urls=[str(moved[1])])
    for run in moved:
        assert KEYS[3] not in set(ids_anywhere(run)) and not (run / "report.html").exists()


@pytest.mark.parametrize("begins_meanwhile", [False, True])
def test_a_run_that_meets_another_ones_takedown_takes_the_lease_first(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_meanwhile: bool
) -> None:
    out, theirs = make_runs(tmp_path)
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    happened: list[str] = []

    def prepare(config: MineConfig, *_: object) -> SimpleNamespace:
        if begins_meanwhile:
            take_down_and_die(store, theirs, tmp_path / "list.txt")
        return SimpleNamespace(store=store, config=config, lines=list)

    @contextlib.contextmanager
    def hold_lease(*_: object, **__: object) -> Iterator[SimpleNamespace]:
        happened.append("lease")
        yield SimpleNamespace(confirm=list)

    for name, instead in {
        "prepare": prepare,
        "hold_lease": hold_lease,
        "take_down": lambda *_, **__: happened.append("takedown"),
        "_mine": lambda *_: happened.append("mine"),
    }.items():
        monkeypatch.setattr(f"mmvp_ray.pipeline.mine.{name}", instead)
    mine_pairs(MineConfig(corpus=("m=x",), out=str(out), store=store.root), progress=SILENT)
    assert happened == ["lease"] * begins_meanwhile + ["takedown", "mine"]


def test_a_plan_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a run, found plan"):
        mine_pairs(MineConfig(out=str(tmp_path / "out"), plan=True), progress=SILENT)
    assert not (tmp_path / "out").exists()


def test_a_list_that_changes_nothing_removes_nothing_if_it_is_killed_either(store: Store, tmp_path: Path) -> None:
    out, *_ = make_runs(tmp_path)
    taken(store, tmp_path, KEYS[3].hex())
    for name in MADE_AGAIN:
        storage.write_bytes(storage.join(store.root, name, "x", "file"), b"of weeks")
    (tmp_path / "list.txt").write_text(KEYS[3].hex())
    take_down_and_die(store, out, tmp_path / "list.txt")
    found = take_down(store, str(out), None, SILENT)
    assert found is not None and found.removed == () and found.num_tables_changed == 0
    assert all(storage.exists(storage.join(store.root, name, "x", "file")) for name in MADE_AGAIN)


def test_a_list_that_cannot_be_used_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    out, *_ = make_runs(tmp_path)
    with pytest.raises(ConfigError, match="check --takedown"):
        take_down(store, str(out), str(tmp_path / "none.txt"), SILENT)
    assert not list(Path(store.root).glob("takedown*")) and not is_due(store, None)


def test_a_list_and_a_store_behind_urls() -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    store = open_store("memory://bucket/store")
    join(store, commit(store))
    storage.write_bytes("memory://bucket/list.txt", "\n".join([url_of(29), *lines_for([3])]).encode())
    seen: list[int] = []
    found = apply_takedown(store, "memory://bucket/list.txt", on_rows=seen.append)
    assert found.num_images == 2 and sum(seen) == found.num_rows_removed > 0
    assert verify(store.root).problems == []
    assert read_record(store).urls == {url_of(29)}
    assert not storage.exists("memory://bucket/store/hubs")
    assert (
        KEYS[3]
        not in read_table(storage.join(store.images("b"), storage.list_names(store.images("b"))[1]))
        .column(0)
        .to_pylist()
    )
