"""Shards, pieces and samples: where a shard is cut, what its key says, and which pieces come out."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvp_ray.sources.piece import PIECE_MEMBERS, Reject, Sample, Shard, cut_pieces

SHARD = Shard(corpus="c", kind="tar", uri="s3://bucket/a/photos-000.tar", num_bytes=7, etag="e")


def sample(number: int) -> Sample:
    return Sample(uri=SHARD.uri, member=str(number), offset=number, data=b"x")


def reject(number: int) -> Reject:
    return Reject(uri=SHARD.uri, member=str(number), reason="no_image", detail="")


@pytest.mark.parametrize("num_members", [0, 1, 2047, 2048, 2049, 4095, 4096, 4097])
def test_pieces_of_a_shard(num_members: int) -> None:
    members = [reject(i) if i % 7 == 3 else sample(i) for i in range(num_members)]
    pieces = list(cut_pieces(SHARD, iter(members)))
    assert [piece.index for piece in pieces] == list(range(max(1, -(-num_members // 2048))))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for piece in pieces:
        first = piece.index * 2048
        held = sorted(int(member.member) for member in (*piece.samples, *piece.rejects))
        assert held == list(range(first, min(first + 2048, num_members)))
        assert [int(one.member) for one in piece.samples] == sorted(int(one.member) for one in piece.samples)
        assert all(int(one.member) % 7 == 3 for one in piece.rejects)


@settings(deadline=None, max_examples=60)
@given(
    num_members=st.integers(0, 30),
    limit=st.integers(1, 7),
    skip=st.sets(st.integers(0, 12)),
    max_members=st.none() | st.integers(1, 35),
)
def test_skipped_pieces_stay_out_and_the_others_are_what_they_would_be(
    num_members: int, limit: int, skip: set[int], max_members: int | None
) -> None:
    shard = dataclasses.replace(SHARD, max_members=max_members)
    members = [sample(i) for i in range(num_members)]
    whole = list(cut_pieces(shard, iter(members), limit=limit))
    count = num_members if max_members is None else min(num_members, max_members)
    assert [int(one.member) for piece in whole for one in piece.samples] == list(range(count))
    assert [piece.last for piece in whole] == [False] * (len(whole) - 1) + [True]
    assert all(len(piece.samples) == limit for piece in whole[:-1])
    seen = list(cut_pieces(shard, (None if i // limit in skip else one for i, one in enumerate(members)), limit=limit))
    assert seen == [piece for piece in whole if piece.index not in skip or not piece.samples]


@pytest.mark.parametrize("max_members", [1, 2047, 2048, 2049, 4096])
def test_a_limited_shard_ends_where_the_limit_is(max_members: int) -> None:
    shard = dataclasses.replace(SHARD, max_members=max_members)
    read: list[int] = []

    def members() -> object:
        for i in range(5000):
            read.append(i)
            yield sample(i)

    pieces = list(cut_pieces(shard, members()))  # type: ignore[arg-type]
    assert sum(len(piece.samples) for piece in pieces) == max_members
    assert pieces[-1].last and len(pieces) == -(-max_members // PIECE_MEMBERS)
    assert len(read) <= max_members + 1


class TestKey:
    @pytest.mark.parametrize(
        "change",
        [
            {"uri": "s3://bucket/b/photos-000.tar"},
            {"num_bytes": 8},
            {"etag": "f"},
            {"max_members": 100},
            {"max_members": 101},
        ],
    )
    def test_it_changes_with_place_size_etag_and_limit(self, change: dict[str, object]) -> None:
        other = dataclasses.replace(SHARD, **change)  # type: ignore[arg-type]
        assert other.key != SHARD.key and other.key == dataclasses.replace(other).key
        assert len({dataclasses.replace(SHARD, max_members=n).key for n in (None, 1, 2, 10, 100)}) == 5

    def test_it_does_not_change_with_the_corpus(self) -> None:
        assert dataclasses.replace(SHARD, corpus="other").key == SHARD.key

    @pytest.mark.parametrize(
        ("uri", "stem"),
        [
            ("s3://bucket/a/photos-000.tar", "photos-000"),
            ("/a/b.tar.gz", "b"),
            ("/a/b.tgz", "b"),
            ("/a/part.0.parquet", "part.0"),
            ("/a/my photos", "my_photos"),
            ("/a/bücher\n", "b_cher_"),
            ("/a/" + "x" * 300 + ".tar", "x" * 80),
            ("/", "shard"),
            ("/a/\udcff\udcfe", "__"),
        ],
    )
    def test_it_is_a_short_and_safe_name(self, uri: str, stem: str) -> None:
        name = dataclasses.replace(SHARD, uri=uri).piece_name(12)
        assert re.fullmatch(re.escape(stem) + r"-[0-9a-f]{12}-000012", name)
