"""Pieces are committed whole or not at all, equal work gives equal bytes, and what is done is known from markers alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray import schema, storage
from mmvp_ray.embed.plan import plan_work
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.sources.piece import Piece, Reject, Shard
from mmvp_ray.store import (
    DONE,
    FileEntry,
    ShardState,
    Store,
    commit_embeddings,
    commit_images,
    committed_pieces,
    done_names,
    open_store,
    read_embeddings,
    read_marker,
    read_table,
    shard_states,
    write_marker,
)

DIM = 6


def shard(number: int = 0, **more: Any) -> Shard:
    return Shard(corpus="c", kind="tar", uri=f"/data/{number}.tar", num_bytes=10_000_000, etag="e", **more)


def piece(of: Shard, index: int = 0, *, last: bool = True) -> Piece:
    return Piece(shard=of, index=index, last=last, samples=(), rejects=())


def row(number: int) -> dict[str, Any]:
    return {
        "image_id": hashlib.sha256(bytes([number])).digest()[:16],
        "uri": "/data/0.tar", "member": f"{number}.jpg", "offset": number, "num_bytes": 3, "width_px": 4, "height_px": 5,
        "caption": None if number % 2 else "a caption \N{SNOWMAN}", "label": None, "url": None, "license": None, "metadata": "{}",
    }  # fmt: skip


ROWS = [row(i) for i in range(7)]
REJECTS = [Reject(uri="/data/0.tar", member="x.jpg", reason="corrupt", detail="bad")]


def vectors(num_rows: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(num_rows, DIM))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return rng.integers(0, 256, (num_rows, 16), dtype=np.uint8), found.astype(np.float16)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def contents(store: Store) -> dict[str, bytes]:
    root = Path(store.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class TestCommit:
    def test_images_and_rejects_come_back(self, store: Store) -> None:
        one = piece(shard(), 3, last=False)
        commit_images(store, one, ROWS, REJECTS)
        assert done_names(store.images("c")) == [one.name] == [f"{shard().key}-000003"]
        images = read_table(storage.join(store.images("c"), f"{one.name}.parquet"))
        assert images.to_pylist() == ROWS and images.schema.equals(schema.IMAGES)
        rejects = read_table(storage.join(store.rejects("c"), f"{one.name}.parquet"))
        assert [Reject(**found) for found in rejects.to_pylist()] == REJECTS
        files, facts = read_marker(storage.join(store.images("c"), one.name + DONE))
        assert [(entry.path, entry.num_rows) for entry in files] == [
            (f"corpora/c/images/{one.name}.parquet", 7),
            (f"corpora/c/rejects/{one.name}.parquet", 1),
        ]
        for entry in files:
            data = storage.read_bytes(storage.join(store.root, entry.path))
            assert (entry.num_bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert facts["index"] == 3 and facts["last"] is False
        assert facts["shard"] == {"uri": "/data/0.tar", "num_bytes": 10_000_000, "etag": "e", "max_members": None}

    @pytest.mark.parametrize("num_rows", [0, 1, 9])
    def test_vectors_come_back_bit_for_bit(self, store: Store, num_rows: int) -> None:
        ids, found = vectors(num_rows)
        one = piece(shard())
        commit_embeddings(store, one, "enc-1", ids, found, REJECTS)
        folder = store.embeddings("enc-1", "c")
        back_ids, back = read_embeddings(storage.join(folder, f"{one.name}.parquet"))
        assert back.dtype == np.float16 and back.tobytes() == found.tobytes() and back.shape == (num_rows, DIM)
        assert np.array_equal(back_ids, ids) and back_ids.dtype == np.uint8
        files, _ = read_marker(storage.join(folder, one.name + DONE))
        assert [entry.num_rows for entry in files] == [num_rows, 1]
        assert done_names(folder) == [one.name]

    def test_an_empty_piece_is_a_piece(self, store: Store) -> None:
        commit_images(store, piece(shard()), [], [])
        table = read_table(storage.join(store.images("c"), f"{piece(shard()).name}.parquet"))
        assert table.num_rows == 0 and table.schema.equals(schema.IMAGES)

    def test_equal_work_gives_equal_bytes_over_what_a_killed_run_left(self, tmp_path: Path) -> None:
        ids, found = vectors(5)
        all_bytes = []
        for name in ("one", "two"):
            store = open_store(str(tmp_path / name))
            if name == "two":
                commit_images(store, piece(shard()), ROWS[:2], [])
                commit_embeddings(store, piece(shard()), "enc-1", ids[:2], found[:2], [])
            commit_images(store, piece(shard()), ROWS, REJECTS)
            commit_embeddings(store, piece(shard()), "enc-1", ids, found, [])
            all_bytes.append(contents(store))
        assert all_bytes[0] == all_bytes[1] and len(all_bytes[0]) == 6

    @pytest.mark.parametrize("table", ["images", "vectors"])
    def test_a_crash_at_any_write_leaves_nothing_that_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
    ) -> None:
        ids, found = vectors(5)

        def commit(store: Store) -> None:
            if table == "images":
                commit_images(store, piece(shard()), ROWS, REJECTS)
            else:
                commit_embeddings(store, piece(shard()), "enc-1", ids, found, REJECTS)

        clean = open_store(str(tmp_path / "clean"))
        commit(clean)
        original = storage.write_bytes
        for num_writes in range(3):
            store = open_store(str(tmp_path / f"crash-{num_writes}"))
            written: list[str] = []

            def dying(uri: str, data: bytes, written: list[str] = written, limit: int = num_writes) -> None:
                if len(written) == limit:
                    raise KeyboardInterrupt
                original(uri, data)
                written.append(uri)

            with monkeypatch.context() as patch:
                patch.setattr(storage, "write_bytes", dying)
                with pytest.raises(KeyboardInterrupt):
                    commit(store)
            assert len(written) == num_writes and not any(uri.endswith(DONE) for uri in written)
            for folder in (store.images("c"), store.embeddings("enc-1", "c")):
                assert done_names(folder) == [] == committed_pieces(folder, [shard()])
                assert shard_states(folder, [shard()])[shard().key].done == frozenset()
            commit(store)
            assert contents(store) == contents(clean)


class TestStates:
    def commit(self, store: Store, of: Shard, indices: list[int], last: int | None, tables: str = "ab") -> None:
        for index in indices:
            one = piece(of, index, last=index == last)
            if "a" in tables:
                commit_images(store, one, [], [])
            if "b" in tables:
                commit_embeddings(store, one, "enc-1", *vectors(0), [])

    @pytest.mark.parametrize(
        ("done", "last", "expected"),
        [
            ([], None, ShardState(done=frozenset(), num_pieces=None)),
            ([0], None, ShardState(done=frozenset({0}), num_pieces=None)),
            ([0, 2], None, ShardState(done=frozenset({0, 2}), num_pieces=None)),
            ([1, 2], 2, ShardState(done=frozenset({1, 2}), num_pieces=3)),
            ([0, 1, 2], 2, ShardState(done=frozenset({0, 1, 2}), num_pieces=3)),
        ],
    )
    def test_what_is_done_of_a_shard(
        self, store: Store, done: list[int], last: int | None, expected: ShardState
    ) -> None:
        self.commit(store, shard(), done, last)
        other, changed = shard(1), Shard(corpus="c", kind="tar", uri="/data/0.tar", num_bytes=10_000_000, etag="f")
        self.commit(store, other, [0], 0)
        found = shard_states(store.images("c"), [shard(), other, changed])
        assert found[shard().key] == expected
        assert expected.complete == (len(done) == 3)
        assert found[other.key].complete
        assert found[changed.key] == ShardState(done=frozenset(), num_pieces=None)
        assert committed_pieces(store.images("c"), [shard(), changed]) == [shard().piece_name(i) for i in done]

    def test_odd_files_in_the_folder_are_nobodys_pieces(self, store: Store) -> None:
        folder = store.images("c")
        for name in (
            "x.done.json",
            "-000001.done.json",
            f"{shard().key}-1.done.json",
            f"{shard().key}-000000.parquet",
            f"{shard().key}-000000.attempt",
        ):
            storage.write_bytes(storage.join(folder, name), b"{}")
        assert shard_states(folder, [shard()])[shard().key].done == frozenset()

    def test_work_is_what_some_table_lacks(self, store: Store) -> None:
        full, no_vectors, half, fresh = (shard(i) for i in range(4))
        self.commit(store, full, [0, 1], 1)
        self.commit(store, no_vectors, [0, 1, 2], 2, "a")
        self.commit(store, no_vectors, [0], 2, "b")
        self.commit(store, half, [0, 2], None)
        plan = plan_work(store, [full, no_vectors, half, fresh], ["enc-1"])
        assert [item.shard for item in plan.work] == [no_vectors, half, fresh]
        assert plan.num_shards == 4 and plan.num_pieces_done == 2 + 1 + 2
        first, second, third = plan.work
        assert (first.images_done, first.skip) == (frozenset({0, 1, 2}), frozenset({0}))
        assert [first.missing(index) for index in range(4)] == [[], ["enc-1"], ["enc-1"], ["enc-1"]]
        assert second.skip == frozenset({0, 2}) and third.skip == frozenset()
        both = plan_work(store, [full, no_vectors, half, fresh], ["enc-1", "enc-2"])
        assert [item.shard for item in both.work] == [full, no_vectors, half, fresh]
        assert both.work[0].missing(0) == ["enc-2"] and both.num_pieces_done == 0

    def test_two_corpora_do_not_mix(self, store: Store) -> None:
        import dataclasses

        other = dataclasses.replace(shard(), corpus="d")
        self.commit(store, shard(), [0], 0)
        assert [item.shard for item in plan_work(store, [shard(), other], ["enc-1"]).work] == [other]


class TestMarkers:
    @pytest.mark.parametrize(
        "text",
        ["[]", "{}", "null", "3", '{"schema_version": 1}', '{"schema_version": 1, "files": [3]}', '{"schema_version": 1, "files": 3}',
         '{"schema_version": 1, "files": [{"path": "x"}]}', "no json", ""],
    )  # fmt: skip
    def test_what_is_no_marker_is_a_data_error(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.done.json").write_text(text)
        with pytest.raises(DataError, match=r"x\.done\.json"):
            read_marker(str(tmp_path / "x.done.json"))

    def test_another_version_is_named_even_where_its_entries_look_different(self, tmp_path: Path) -> None:
        for entries in ("[]", '[{"location": "x"}]'):
            (tmp_path / "x.done.json").write_text(f'{{"schema_version": 2, "files": {entries}}}')
            with pytest.raises(DataError, match="schema version 1, found 2"):
                read_marker(str(tmp_path / "x.done.json"))

    def test_facts_come_back(self, tmp_path: Path) -> None:
        entry = FileEntry(path="a/b", num_rows=1, num_bytes=2, sha256="ff")
        write_marker(str(tmp_path / "x"), files=[entry], last=True, more={"n": None})
        assert read_marker(str(tmp_path / "x")) == ([entry], {"last": True, "more": {"n": None}})

    def test_a_marker_without_its_facts_is_a_data_error(self, store: Store) -> None:
        write_marker(storage.join(store.images("c"), shard().piece_name(0) + DONE), files=[])
        with pytest.raises(DataError, match="last"):
            shard_states(store.images("c"), [shard()])


class TestOpen:
    def test_it_is_made_once_and_opened_again(self, tmp_path: Path) -> None:
        one = open_store(str(tmp_path / "s"))
        before = contents(one)
        assert list(before) == ["store.json"]
        assert open_store(str(tmp_path / "s" / "")) == one and contents(one) == before

    @pytest.mark.parametrize("text", ['{"schema_version": 2}', '{"schema_version": "1"}', "{}", "[]", "no json"])
    def test_another_version_is_refused_and_left_alone(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "store.json").write_text(text)
        with pytest.raises(DataError, match=r"store\.json"):
            open_store(str(tmp_path))
        assert (tmp_path / "store.json").read_text() == text

    def test_a_file_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError):
            open_store(str(tmp_path / "file"))

    def test_paths(self) -> None:
        store = Store("s3://b/root")
        assert store.images("c") == "s3://b/root/corpora/c/images"
        assert store.rejects("c") == "s3://b/root/corpora/c/rejects"
        assert store.embeddings("e-1", "c") == "s3://b/root/embeddings/e-1/c"
        assert store.near_pairs("e-1", "k") == "s3://b/root/near_pairs/e-1/k"
        assert store.scores("f-1", "e-1", "k") == "s3://b/root/scores/f-1/e-1/k"
        assert store.relative("s3://b/root/x/y") == "x/y"
