"""What a run reads and writes over many pieces: places, numbers of images, sorted blind pairs, each against plain loops."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mine import CopyGroups, RuleConfig, SelectConfig, find_copies, settle_rule
from mmvp_ray.mine.pair_rows import rows_of
from mmvp_ray.mine.random_pairs import RandomSample
from mmvp_ray.pipeline import MineConfig, funnel, judge, places, results
from mmvp_ray.pipeline.corpora import Corpus
from mmvp_ray.schema import BLIND_PAIRS
from mmvp_ray.search import PairBatch, PieceRef
from mmvp_ray.sources.piece import Piece, Reject, Shard
from mmvp_ray.storage import read_json
from mmvp_ray.store import Store, commit_embeddings, commit_images, id_keys, open_store, read_table
from tests.shuffled import Shuffled, pass_by_tasks

RULE = settle_rule(RuleConfig(), RandomSample(cos_near_P=np.empty(0), cos_far_P=np.empty(0)))
IDS = np.random.default_rng(0).integers(0, 256, (60, 16), dtype=np.uint8)
IDS[:8, 12:] = 0
NUM_PIECES = 9


def shard(number: int) -> Shard:
    return Shard(corpus="c", kind="tar", uri=f"/{number}.tar", num_bytes=1, etag="0")


def commit(store: Store, number: int, rows: list[int], *, num_rejects: int = 0, num_odd: int = 0) -> PieceRef:
    one = Piece(shard=shard(number), index=0, last=True, samples=(), rejects=())
    images = [
        {
            "image_id": IDS[row].tobytes(),
            "uri": one.shard.uri,
            "member": f"{place}.jpg",
            "num_bytes": 1,
            "width_px": 2,
            "height_px": 2,
            "caption": f"{number}/{place}",
        }
        for place, row in enumerate(rows)
    ]
    lost = [
        Reject(uri=one.shard.uri, member=f"x{n}", reason=["too_large", "not_an_image"][n % 2], detail="d")
        for n in range(num_rejects)
    ]
    odd = [Reject(uri=one.shard.uri, member=f"y{n}", reason="not_finite", detail="v") for n in range(num_odd)]
    commit_images(store, one, images, lost)
    commit_embeddings(store, one, "e", IDS[rows][:0], np.empty((0, 4), np.float16), odd)
    return PieceRef("c", one.name)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[PieceRef], list[list[int]]]:
    """A store of small pieces; images recur within pieces and between them, and the last ten are in none."""
    store, rng = open_store(str(tmp_path_factory.mktemp("store"))), np.random.default_rng(1)
    rows = [rng.integers(0, 50, 12).tolist() for _ in range(NUM_PIECES)] + [list(range(50))]
    pieces = [commit(store, n, here, num_rejects=n % 4, num_odd=n // 8) for n, here in enumerate(rows)]
    order = sorted(range(len(pieces)), key=lambda n: pieces[n])
    return store, [pieces[n] for n in order], [rows[n] for n in order]


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over pieces as over very many: by tasks that end in any order."""
    pass_by_tasks(monkeypatch, 3)


Made = tuple[Store, list[PieceRef], list[list[int]]]


def test_places_are_the_first_ones_and_all_are_counted(made: Made) -> None:
    store, pieces, rows = made
    wanted = [0, 3, 7, 20, 49]
    session = Shuffled()
    found = places.find_places(store, pieces, [IDS[row].tobytes() for row in wanted], session=session)
    assert session.num_tasks == -(-len(pieces) // 3)
    counts = Counter(itertools.chain(*rows))
    first = {}
    for piece, here in zip(pieces, rows, strict=True):
        for place, row in enumerate(here):
            first.setdefault(row, (piece, place))
    assert dict(found.counts) == {IDS[row].tobytes(): counts[row] for row in wanted}
    for row in wanted:
        piece, place = first[row]
        told = found.rows[IDS[row].tobytes()]
        assert (told["member"], told["image_id"]) == (f"{place}.jpg", IDS[row].tobytes())
        number = next(n for n in range(len(pieces)) if shard(n).piece_name(0) == piece.name)
        assert told["caption"] == f"{number}/{place}"
    for where in (None, session):
        firsts = places.first_places(store, pieces, [IDS[row].tobytes() for row in wanted], session=where)
        assert firsts == {IDS[row].tobytes(): (first[row][0], found.rows[IDS[row].tobytes()]) for row in wanted}


def test_the_places_of_near_copies_count_for_the_image_that_stands_for_them(made: Made, tmp_path: Path) -> None:
    store, pieces, _ = made
    pairs = pairs_of(2, 60)
    copies = find_copies([pairs], floor=0.93)
    left = pairs.take(np.flatnonzero(np.isin(id_keys(pairs.ids_a_P16), copies.represented(), invert=True)))
    left = left.take(np.flatnonzero(np.isin(id_keys(left.ids_b_P16), copies.represented(), invert=True)))
    blind = left.take(RULE.blind(left.cos_near_P, left.cos_far_P))
    results.write_blind_pairs(store, str(tmp_path), "n", "f", [blind], RULE, pieces, copies, session=Shuffled())
    (file,) = Path(results.blind_folder(str(tmp_path), "n", "f")).iterdir()
    expected = {
        (row["image_id_a"], row["image_id_b"]): (row["num_copies_a"], row["num_copies_b"])
        for row in read_table(str(file)).to_pylist()
    }
    found = places.find_places(store, pieces, results.images_of(blind), session=Shuffled(), copies=copies)
    told = results.describe_pairs(blind, found)
    assert {
        (row["image_id_a"], row["image_id_b"]): (row["num_copies_a"], row["num_copies_b"]) for row in told
    } == expected
    alone = places.find_places(store, pieces, results.images_of(blind), session=Shuffled())
    assert dict(alone.counts) != dict(found.counts) and dict(alone.rows) == dict(found.rows)


def test_an_image_in_no_table(made: Made) -> None:
    store, pieces, _ = made
    gone, here = IDS[55].tobytes(), IDS[3].tobytes()
    with pytest.raises(DataError, match=gone.hex()):
        places.find_places(store, pieces, [here, gone], session=Shuffled())
    assert set(places.first_places(store, pieces, [here, gone])) == {here}
    assert places.find_places(store, pieces, [], session=Shuffled()).rows == {}


def pairs_of(seed: int, num_pairs: int) -> PairBatch:
    rng = np.random.default_rng(seed)
    names = np.sort(id_keys(IDS[:50]))
    every = np.array(list(itertools.combinations(range(50), 2)))
    a, b = names[every[rng.permutation(len(every))[:num_pairs]]].T
    return PairBatch(
        ids_a_P16=np.ascontiguousarray(a).view(np.uint8).reshape(-1, 16),
        ids_b_P16=np.ascontiguousarray(b).view(np.uint8).reshape(-1, 16),
        cos_near_P=rng.uniform(0.94, 1, len(a)),
        cos_far_P=rng.uniform(0, 1, len(a)),
    )


@pytest.mark.parametrize(("num_pairs", "collapsed"), [(0, False), (700, False), (700, True)])
def test_blind_pairs_are_sorted_over_all_files(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_pairs: int, collapsed: bool
) -> None:
    store, pieces, rows = made
    monkeypatch.setattr(results, "PAIRS_PER_FILE", 64)
    pairs = pairs_of(2, num_pairs)
    copies = find_copies([pairs], floor=0.93) if collapsed else CopyGroups.none()
    parts = [pairs.take(np.arange(start, num_pairs, 5)) for start in range(5)]
    results.write_blind_pairs(store, str(tmp_path), "n", "f", parts, RULE, pieces, copies, session=Shuffled())
    results.clear(str(tmp_path))
    found = results.write_blind_pairs(
        store, str(tmp_path), "n", "f", parts[::-1], RULE, pieces, copies, session=Shuffled(1)
    )

    group = dict(zip(copies.keys_M.tolist(), copies.group_M.tolist(), strict=True))
    keys = id_keys(IDS).tolist()
    counts = Counter(group.get(keys[row], keys[row]) for row in itertools.chain(*rows))
    blind = pairs.take(RULE.blind(pairs.cos_near_P, pairs.cos_far_P))
    expected = sorted(
        (a, b, near, far, counts[a], counts[b])
        for a, b, near, far in zip(
            id_keys(blind.ids_a_P16).tolist(),
            id_keys(blind.ids_b_P16).tolist(),
            blind.cos_near_P.tolist(),
            blind.cos_far_P.tolist(),
            strict=True,
        )
    )
    files = sorted(Path(results.blind_folder(str(tmp_path), "n", "f")).iterdir())
    tables = [read_table(str(file)) for file in files]
    assert [file.name for file in files] == [f"part-{n:06d}.parquet" for n in range(len(files))]
    assert [len(table) for table in tables[:-1]] == [64] * (len(files) - 1) and len(files) == max(
        1, -(-len(expected) // 64)
    )
    assert all(table.schema.equals(BLIND_PAIRS, check_metadata=True) for table in tables)
    written = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    assert [(a.rstrip(b"\0"), b.rstrip(b"\0"), *more) for a, b, *more in written] == expected
    assert found.num_pairs == len(expected)

    again = np.concatenate([np.empty((0, 6), np.uint64), *(rows_of(part) for part in found.batches())])
    by_ids = np.lexsort((id_keys(blind.ids_b_P16), id_keys(blind.ids_a_P16)))
    np.testing.assert_array_equal(again, rows_of(blind)[by_ids])


def test_of_two_runs_in_one_folder_the_one_begun_last_keeps_its_pairs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second writes some while the first looks at what it will write."""
    store, pieces, _ = made
    monkeypatch.setattr(results, "PAIRS_PER_FILE", 64)

    def write(
        out: str, token: str, pairs: PairBatch, *, meanwhile: Callable[[], None] = lambda: None
    ) -> list[PairBatch]:
        def batches() -> Iterator[PairBatch]:
            yield pairs
            meanwhile()

        def confirm() -> None:
            results.check_alone(out, token)

        blind = results.write_blind_pairs(
            store, out, "n", "f", batches(), RULE, pieces, CopyGroups.none(), session=Inline(), confirm=confirm
        )
        return list(blind.batches())

    out = str(tmp_path)
    first = results.begin(out)
    results.clear(out)
    of_second: list[PairBatch] = []

    def second() -> None:
        token = results.begin(out)
        results.clear(out)
        of_second.extend(write(out, token, pairs_of(7, 20)))
        results.write_manifest(out, token, {})

    with pytest.raises(ConfigError, match="expected no other run in"):
        write(out, first, pairs_of(5, 700), meanwhile=second)
    folder = results.blind_folder(out, "n", "f")
    assert [path.name for path in Path(folder).iterdir()] == ["part-000000.parquet"]
    found = list(results.read_blind_pairs(folder))
    assert of_second and list(map(rows_of_bytes, found)) == list(map(rows_of_bytes, of_second))


def rows_of_bytes(pairs: PairBatch) -> bytes:
    return rows_of(pairs).tobytes()


def test_of_two_runs_in_one_folder_the_one_begun_last_counts(tmp_path: Path) -> None:
    out = str(tmp_path)
    first = results.begin(out)
    results.check_alone(out, first)
    second = results.begin(out)
    with pytest.raises(ConfigError, match="expected no other run in"):
        results.check_alone(out, first)
    results.write_manifest(out, second, {"far_below": 0.6})
    # The one begun first ends last.
    with pytest.raises(ConfigError, match="give each run an --out of its own"):
        results.write_manifest(out, first, {"far_below": 0.0})
    assert [path.name for path in tmp_path.iterdir()] == [results.MANIFEST]
    assert read_json(str(tmp_path / results.MANIFEST)) == {"far_below": 0.6}


def test_results_stay_until_there_are_others_and_then_go_whole(tmp_path: Path) -> None:
    names = [
        results.MANIFEST,
        results.REPORT_HTML,
        results.REPORT_JSON,
        results.SELECTION,
        "blind_pairs/n--f/part.parquet",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    results.begin(str(tmp_path))
    assert all((tmp_path / name).exists() for name in names)
    results.clear(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [results.BEGUN]


def test_runs_with_other_limits_keep_their_own_hubs(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pieces, _ = made
    store = open_store(str(tmp_path / "store"))
    pairs = pairs_of(5, 300)
    monkeypatch.setattr(judge, "PairTable", lambda near, far: SimpleNamespace(batches=lambda: iter([pairs])))
    monkeypatch.setattr(results, "write_blind_pairs", lambda *_, **__: SimpleNamespace(batches=lambda: iter([])))
    stage = SimpleNamespace(advance=lambda num: None, found_pairs=lambda **counts: None)
    name = SimpleNamespace(name="e", slug="e")
    near = SimpleNamespace(table=SimpleNamespace(key="t"), space=name, spec=name, copies=CopyGroups.none())
    found = {}
    for limit in (5, 1000):
        config = MineConfig(out=str(tmp_path), selection=SelectConfig(hub_degree=limit))
        judge.judge(
            config,
            store,
            pieces,
            near,
            SimpleNamespace(rule=RULE, space=name, spec=name),
            session=Inline(),
            stage=stage,
            confirm=lambda: None,
        )
        found[limit] = sorted(read_table(str(path)).num_rows for path in tmp_path.rglob("hubs.parquet"))
    assert found[5][0] > 0 and found[1000] == [0, *found[5]]
    assert len(list(tmp_path.rglob("copies.parquet"))) == 1


def test_described_pairs_say_what_the_tables_say(made: Made) -> None:
    store, pieces, rows = made
    pairs = pairs_of(3, 4)
    counts = Counter(IDS[row].tobytes() for row in itertools.chain(*rows))
    looked_up = places.find_places(store, pieces, results.images_of(pairs, pairs_of(4, 9)), session=Shuffled())
    told = results.describe_pairs(pairs, looked_up, np.array([3, 1, 1, 0]))
    assert [row["rank"] for row in told] == [1, 2, 3, 4] and [row["cluster"] for row in told] == [3, 1, 1, 0]
    assert [row["num_copies_b"] for row in told] == [counts[row["image_id_b"]] for row in told]
    assert results.describe_pairs(pairs.take(np.arange(0)), looked_up) == []


def test_images_are_counted_over_pieces(made: Made) -> None:
    store, pieces, rows = made
    corpus = Corpus(name="c", url="/", shards=tuple(shard(n) for n in range(len(pieces))))
    assert funnel.run_pieces(store, [corpus]) == pieces
    session = Shuffled()
    counts = funnel.count_images(store, pieces, ["e"], session=session)
    assert session.num_tasks == -(-len(pieces) // 3)
    lost = [sum(n % 4 for n in range(10)), sum(len(here) for here in rows)]
    assert (counts.num_rejected, counts.num_decoded, counts.num_read) == (*lost, sum(lost))
    # Piece n lost n % 4 members, the even ones too large; pieces 8 and 9 have one vector each that is not finite.
    assert {reason: count for reason, (count, _) in counts.reasons.items()} == {
        "not_an_image": sum(n % 4 // 2 for n in range(10)),
        "not_finite": 2,
        "too_large": sum((n % 4 + 1) // 2 for n in range(10)),
    }
    first = min(pieces, key=lambda piece: (piece.name.split("-")[0] in "048", piece.name))
    number = first.name.split("-")[0]
    assert counts.reasons["too_large"][1] == f"x0 of /{number}.tar: d"
    assert list(counts.reasons) == sorted(counts.reasons)
