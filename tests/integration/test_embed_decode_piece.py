"""A piece is decoded once for all encoders: copies once, rejects kept, decoders that kill tried in isolation and never again."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray import storage
from mmvp_ray.embed import decode_piece as module
from mmvp_ray.embed.decode_piece import ATTEMPT, decode_piece
from mmvp_ray.embed.wire import EncodedPiece, PixelPiece
from mmvp_ray.errors import ResourceError
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.geometry import Geometry, apply_geometry
from mmvp_ray.images.reasons import Rejected, RejectReason
from mmvp_ray.sources.piece import Piece, Reject, Sample, Shard, image_id
from mmvp_ray.store import Store, apply_takedown, done_names, open_store, read_table
from mmvp_ray.store.verify import verify

pytestmark = pytest.mark.integration

GEOMETRIES = [
    Geometry(library="pil", resize="shortest", resize_px=(size, size), interpolation="bicubic", crop_px=(size, size))
    for size in (8, 16)
]
SHARD = Shard(corpus="c", kind="tar", uri="/x.tar", num_bytes=1, etag="e")
KILLER = b"this one kills the decoder"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def encoded(
    images: Sequence[tuple[str, bytes]], *, images_done: bool = False, rejects: tuple[Reject, ...] = ()
) -> EncodedPiece:
    samples = tuple(
        Sample(uri=SHARD.uri, member=name, offset=i * 10, data=data, caption=f"caption of {name}")
        for i, (name, data) in enumerate(images)
    )
    piece = Piece(shard=SHARD, index=0, last=True, samples=samples, rejects=rejects)
    return EncodedPiece(piece=piece, images_done=images_done, missing=("enc-1",), read_seconds=0.5)


def rows(store: Store, table: str = "images") -> list[dict[str, Any]]:
    folder = store.images("c") if table == "images" else store.rejects("c")
    found: list[dict[str, Any]] = read_table(storage.join(folder, f"{SHARD.piece_name(0)}.parquet")).to_pylist()
    return found


def attempt(store: Store) -> str:
    return storage.join(store.images("c"), SHARD.piece_name(0) + ATTEMPT)


def run(store: Store, item: EncodedPiece, wanted: Sequence[int] = (0, 1)) -> PixelPiece:
    return decode_piece(store, item, GEOMETRIES, wanted)


class Child:
    """Stands for decoding in child processes: the killer dies, all else is decoded; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def __call__(self, items: Sequence[bytes], **_: object) -> list[Decoded | Rejected]:
        self.asked.extend(items)
        return [
            Rejected(RejectReason.DECODER_CRASHED, "died of SIGSEGV") if data == KILLER else decode(data)
            for data in items
        ]


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    found = Child()
    monkeypatch.setattr(module, "decode_isolated", found)

    def fatal(data: bytes) -> Decoded | Rejected:
        if data == KILLER:
            raise KeyboardInterrupt("the process dies here")
        return decode(data)

    monkeypatch.setattr(module, "decode", fatal)
    return found


def test_an_id_is_the_head_of_the_hash() -> None:
    assert image_id(b"abc") == hashlib.sha256(b"abc").digest()[:16]


def test_pixels_ids_rows_and_counts(store: Store, make_jpeg: Callable[..., bytes]) -> None:
    images = [(f"{i}.jpg", make_jpeg(i, width_px=20 + i, height_px=30)) for i in range(4)]
    lost = (Reject(uri=SHARD.uri, member="gone", reason="no_image", detail="side files"),)
    found = run(store, encoded([*images[:2], ("bad.jpg", b"no image"), *images[2:]], rejects=lost))
    assert [row.tobytes() for row in found.ids_N16] == [image_id(data) for _, data in images]
    assert found.places == [(SHARD.uri, name) for name, _ in images]
    for which, geometry in enumerate(GEOMETRIES):
        assert found.pixels[which].shape == (4, 3, *geometry.shape_px)
        for pixels, (_, data) in zip(found.pixels[which], images, strict=True):
            whole = decode(data)
            assert isinstance(whole, Decoded)
            assert np.array_equal(pixels, apply_geometry(whole.image_HWC, geometry))
    assert [
        (row["member"], row["offset"], row["width_px"], row["height_px"], row["caption"]) for row in rows(store)
    ] == [
        (name, at * 10, 20 + i, 30, f"caption of {name}")
        for i, ((name, _), at) in enumerate(zip(images, (0, 1, 3, 4), strict=True))
    ]
    assert [row["num_bytes"] for row in rows(store)] == [len(data) for _, data in images]
    assert [(row["member"], row["reason"]) for row in rows(store, "rejects")] == [
        ("gone", "no_image"),
        ("bad.jpg", "not_an_image"),
    ]
    counts = found.counts
    assert (counts["num_read"], counts["num_decoded"], counts["num_rejected"], counts["read_seconds"]) == (6, 4, 2, 0.5)
    assert counts["num_bytes"] == sum(len(data) for _, data in images) + len(b"no image")
    assert done_names(store.images("c")) == [SHARD.piece_name(0)]
    assert not storage.exists(attempt(store))


def test_copies_are_embedded_once_and_all_their_places_kept(store: Store, make_jpeg: Callable[..., bytes]) -> None:
    one, two = make_jpeg(1), make_jpeg(2)
    images = [("a.jpg", one), ("b.jpg", two), ("c.jpg", one), ("d.jpg", b"bad"), ("e.jpg", b"bad"), ("f.jpg", one)]
    found = run(store, encoded(images))
    assert [row.tobytes() for row in found.ids_N16] == [image_id(one), image_id(two)]
    assert found.pixels[0].shape[0] == found.pixels[1].shape[0] == 2
    assert found.places == [(SHARD.uri, "a.jpg"), (SHARD.uri, "b.jpg")]
    assert [(row["member"], row["image_id"]) for row in rows(store)] == [
        (name, image_id(data)) for name, data in images if data != b"bad"
    ]
    assert [row["member"] for row in rows(store, "rejects")] == ["d.jpg", "e.jpg"]


def test_only_wanted_geometries_are_made(store: Store, make_jpeg: Callable[..., bytes]) -> None:
    assert list(run(store, encoded([("a.jpg", make_jpeg(1))]), wanted=(1,)).pixels) == [1]
    assert run(store, encoded([("a.jpg", make_jpeg(1))], images_done=True), wanted=()).pixels == {}


def test_pixels_of_both_libraries_are_those_of_the_array(store: Store, make_jpeg: Callable[..., bytes]) -> None:
    # Either may come first; Pillow's image is gone once torchvision's resize has taken the array.
    mixed = [dataclasses.replace(GEOMETRIES[which], library=name) for name, which in (("torchvision", 0), ("pil", 1))]
    data = make_jpeg(1, width_px=50, height_px=33)
    whole = decode(data)
    assert isinstance(whole, Decoded)
    for done, geometries in enumerate((mixed, mixed[::-1])):
        found = decode_piece(store, encoded([("a.jpg", data)], images_done=bool(done)), geometries, (0, 1))
        for which, geometry in enumerate(geometries):
            assert np.array_equal(found.pixels[which][0], apply_geometry(whole.image_HWC, geometry))


def test_an_image_is_hashed_once(
    store: Store, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []

    def counting(data: bytes) -> bytes:
        hashed.append(data)
        return image_id(data)

    monkeypatch.setattr(module, "image_id", counting)
    images = [(f"{i}.jpg", make_jpeg(i)) for i in range(20)]
    run(store, encoded(images))
    assert hashed == [data for _, data in images]


@pytest.mark.parametrize("images", [[], [("bad.jpg", b"bad")]])
def test_a_piece_without_images(store: Store, images: list[tuple[str, bytes]]) -> None:
    found = run(store, encoded(images))
    assert found.ids_N16.shape == (0, 16) and found.pixels[0].shape == (0, 3, 8, 8)
    assert rows(store) == [] and len(rows(store, "rejects")) == len(images)


def test_committed_tables_are_not_written_again(
    store: Store, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [("a.jpg", make_jpeg(1)), ("bad.jpg", b"bad")]
    first = run(store, encoded(images))
    before = rows(store), rows(store, "rejects")

    def forbidden(*_: object) -> None:
        raise AssertionError("committed again")

    monkeypatch.setattr(module, "commit_images", forbidden)
    second = run(store, encoded(images, images_done=True))
    assert np.array_equal(second.ids_N16, first.ids_N16) and np.array_equal(second.pixels[1], first.pixels[1])
    assert second.counts["num_rejected"] == 1 and (rows(store), rows(store, "rejects")) == before


class TestKillers:
    def test_a_decoder_that_dies_leaves_its_attempt(
        self, store: Store, make_jpeg: Callable[..., bytes], child: Child
    ) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(store, encoded([("a.jpg", make_jpeg(1)), ("k.jpg", KILLER)]))
        assert storage.exists(attempt(store)) and done_names(store.images("c")) == [] and child.asked == []

    def test_the_next_one_decodes_apart_and_takes_the_attempt_away(
        self, store: Store, make_jpeg: Callable[..., bytes], child: Child
    ) -> None:
        storage.write_bytes(attempt(store), b"")
        one = make_jpeg(1)
        images = [("a.jpg", one), ("k.jpg", KILLER), ("b.jpg", make_jpeg(2)), ("a2.jpg", one), ("k2.jpg", KILLER)]
        found = run(store, encoded(images))
        assert child.asked == [data for _, data in images[:3]]
        assert found.places == [(SHARD.uri, "a.jpg"), (SHARD.uri, "b.jpg")]
        assert [(row["member"], row["reason"]) for row in rows(store, "rejects")] == [
            ("k.jpg", "decoder_crashed"), ("k2.jpg", "decoder_crashed"),
        ]  # fmt: skip
        assert not storage.exists(attempt(store))

    @pytest.mark.parametrize("isolated", [False, True])
    @pytest.mark.parametrize("reason", ["decoder_crashed", "decoder_timed_out"])
    def test_what_killed_once_is_not_decoded_again(
        self, store: Store, make_jpeg: Callable[..., bytes], child: Child, isolated: bool, reason: str
    ) -> None:
        images = [("a.jpg", make_jpeg(1)), ("k.jpg", KILLER), ("b.jpg", make_jpeg(2))]
        killed = Reject(uri=SHARD.uri, member="k.jpg", reason=reason, detail="died")
        whole = encoded([images[0], images[2]], rejects=(killed,))
        first = run(store, whole)
        if isolated:
            storage.write_bytes(attempt(store), b"")
        second = run(store, encoded(images, images_done=True))
        assert KILLER not in child.asked and len(child.asked) == (2 if isolated else 0)
        assert np.array_equal(second.ids_N16, first.ids_N16) and second.counts["num_rejected"] == 1
        assert not storage.exists(attempt(store))

    def test_isolation_goes_in_chunks_and_gives_the_same(
        self,
        store: Store,
        tmp_path: Path,
        make_jpeg: Callable[..., bytes],
        child: Child,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "CHUNK_IMAGES", 3)
        images = [(f"{i}.jpg", make_jpeg(i % 5)) for i in range(8)]
        plain = run(open_store(str(tmp_path / "plain")), encoded(images))
        storage.write_bytes(attempt(store), b"")
        apart = run(store, encoded(images))
        assert np.array_equal(apart.ids_N16, plain.ids_N16) and np.array_equal(apart.pixels[0], plain.pixels[0])
        assert rows(store) == rows(open_store(str(tmp_path / "plain")))

    def test_a_real_child_survives(self, store: Store, make_jpeg: Callable[..., bytes]) -> None:
        storage.write_bytes(attempt(store), b"")
        found = run(store, encoded([("a.jpg", make_jpeg(1)), ("bad.jpg", b"bad")]))
        assert found.places == [(SHARD.uri, "a.jpg")] and [row["reason"] for row in rows(store, "rejects")] == [
            "not_an_image"
        ]


class TestTakenDown:
    def taken(self, store: Store, tmp_path: Path, *lines: str) -> None:
        (tmp_path / "list.txt").write_text("\n".join(lines))
        apply_takedown(store, str(tmp_path / "list.txt"))

    def test_members_are_refused_by_id_and_by_url_and_leave_their_place_alone(
        self, store: Store, tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = [(f"{i}.jpg", make_jpeg(i)) for i in range(6)]
        images += [("bad.jpg", b"no image"), ("copy-of-4.jpg", images[4][1])]
        item = encoded(images)
        samples = [dataclasses.replace(sample, url=f"https://x.org/{sample.member}") for sample in item.piece.samples]
        item = dataclasses.replace(item, piece=dataclasses.replace(item.piece, samples=tuple(samples)))
        self.taken(store, tmp_path, image_id(images[4][1]).hex(), "https://x.org/1.jpg", "https://x.org/other.jpg")
        decoded: list[bytes] = []
        monkeypatch.setattr(module, "decode", lambda data: decoded.append(data) or decode(data))
        found = run(store, item)
        assert [row.tobytes() for row in found.ids_N16] == [image_id(images[i][1]) for i in (0, 2, 3, 5)]
        assert found.places == [(SHARD.uri, f"{i}.jpg") for i in (0, 2, 3, 5)] and found.pixels[1].shape[0] == 4
        assert images[1][1] not in decoded and images[4][1] not in decoded and len(decoded) == 5
        assert [row["member"] for row in rows(store)] == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
        why = "on the takedown record of this store"
        assert [(row["member"], row["reason"], row["detail"]) for row in rows(store, "rejects")][1:] == [
            ("1.jpg", "taken_down", why), ("4.jpg", "taken_down", why), ("copy-of-4.jpg", "taken_down", why),
        ]  # fmt: skip
        assert (found.counts["num_read"], found.counts["num_decoded"], found.counts["num_rejected"]) == (8, 4, 4)
        for path in Path(store.root).rglob("*"):
            assert (
                not path.is_file() or image_id(images[4][1]) not in path.read_bytes() or path.name == "takedown.parquet"
            )
        assert verify(store.root).problems == []

    @pytest.mark.parametrize("isolated", [False, True])
    def test_it_does_not_matter_whether_they_were_taken_down_before_or_after(
        self, store: Store, tmp_path: Path, make_jpeg: Callable[..., bytes], isolated: bool
    ) -> None:
        images = [(f"{i:02d}.jpg", make_jpeg(i % 19)) for i in range(37)]
        images[20] = ("20.jpg", b"no image")
        lost = (Reject(uri=SHARD.uri, member="gone", reason="no_image", detail="side files"),)
        lines = [image_id(make_jpeg(i)).hex() for i in (0, 3, 18)]
        after = open_store(str(tmp_path / "after"))
        run(after, encoded(images, rejects=lost))
        assert len(rows(after)) == 36
        self.taken(after, tmp_path, *lines)
        self.taken(store, tmp_path, *lines)
        if isolated:
            storage.write_bytes(attempt(store), b"")
        first = run(store, encoded(images, rejects=lost))
        assert len(rows(store)) == 31 and len(rows(store, "rejects")) == 7
        trees = [
            {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}
            for root in (store.root, after.root)
        ]
        assert trees[0] == trees[1]
        again = run(after, encoded(images, images_done=True, rejects=lost))
        assert np.array_equal(again.ids_N16, first.ids_N16) and np.array_equal(again.pixels[0], first.pixels[0])

    def test_a_list_that_grows_is_heeded_at_once(
        self, store: Store, tmp_path: Path, make_jpeg: Callable[..., bytes]
    ) -> None:
        images = [(f"{i}.jpg", make_jpeg(i)) for i in range(4)]
        for number in range(4):
            self.taken(store, tmp_path, image_id(images[number][1]).hex())
            assert len(run(store, encoded(images)).ids_N16) == 3 - number


def test_a_store_that_is_full_says_so_and_commits_nothing(
    store: Store, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="no space left"):
            run(store, encoded([("a.jpg", make_jpeg(1))]))
    assert done_names(store.images("c")) == []
    assert run(store, encoded([("a.jpg", make_jpeg(1))])).places == [(SHARD.uri, "a.jpg")]


def test_a_file_of_its_own_is_read_when_it_is_decoded_and_rejected_if_it_is_gone(
    store: Store, tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    from mmvp_ray.sources import list_shards, read_pieces

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02d}.jpg").write_bytes(make_jpeg(number % 37))
    (shard,) = list_shards("c", str(folder))
    (folder / "05.jpg").unlink()
    (piece,) = read_pieces(shard)
    item = EncodedPiece(piece=piece, images_done=False, missing=("e",), read_seconds=0.0)
    found = decode_piece(store, item, [], [])
    assert found.counts["num_decoded"] == 39
    assert found.counts["num_rejected"] == 1
    assert len(found.ids_N16) == 37 - 1
    rejects = read_table(storage.join(store.rejects("c"), f"{piece.name}.parquet")).to_pylist()
    assert [(row["member"], row["reason"]) for row in rejects] == [("05.jpg", "unreadable_member")]
