"""Aesthetic scores are the head's on the stored vectors, made once per piece, and split the images at a least score."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mmvp_ray import storage
from mmvp_ray.cluster import Inline
from mmvp_ray.encoders.aesthetic_head import AestheticHead, load_aesthetic_head
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.ingest import aesthetic, aesthetic_scores
from mmvp_ray.ingest.aesthetic import (
    AestheticConfig,
    choose_encoder,
    is_heads_encoder,
    kept_keys,
    left_out_keys,
    score_images,
    scored_pieces,
    scores_folder,
)
from mmvp_ray.sources.piece import Piece, Shard
from mmvp_ray.store import (
    PieceRef,
    Store,
    apply_takedown,
    commit_embeddings,
    commit_images,
    key_bytes,
    open_store,
    read_embeddings,
    read_table,
    read_takedown_list,
)
from mmvp_ray.store.verify import verify

DIM = 12
SLUG = "ViT-L-14-quickgelu-0123456789abcdef"


def save_head(path: Path, *, seed: int = 0, **tensors: NDArray[np.float32]) -> Path:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(seed)
    standard = {
        "weight": rng.normal(scale=3, size=(1, DIM)).astype(np.float32),
        "bias": np.array([5.5], dtype=np.float32),
    }
    save_file(tensors or standard, path)
    return path


def vectors(num_rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(num_rows, DIM))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    ids = [hashlib.sha256(f"{seed} {row}".encode()).digest()[:16] for row in range(num_rows)]
    # Trailing zero bytes are what numpy's texts lose.
    ids = [id_[:14] + b"\0\0" if row % 3 == 0 else id_ for row, id_ in enumerate(ids)]
    return np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, 16).copy(), found.astype(np.float16)


def fill(store: Store, corpus: str, number: int, num_rows: int, slug: str = SLUG) -> Piece:
    shard = Shard(corpus=corpus, kind="tar", uri=f"/data/{corpus}{number}.tar", num_bytes=1, etag="e")
    piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    ids, vecs = vectors(num_rows, seed=number)
    rows = [
        {"image_id": id_.tobytes(), "uri": shard.uri, "member": f"{row}.jpg", "offset": row, "num_bytes": 3, "width_px": 4,
         "height_px": 5, "caption": None, "label": None, "url": None, "license": None, "metadata": None}
        for row, id_ in enumerate(ids)
    ]  # fmt: skip
    commit_images(store, piece, rows, [])
    commit_embeddings(store, piece, slug, ids, vecs, [])
    return piece


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(str(tmp_path / "store"))
    for corpus, number, num_rows in (("a", 1, 30), ("a", 2, 1), ("b", 3, 25), ("b", 4, 0)):
        fill(made, corpus, number, num_rows)
    return made


class Wired(Inline):
    """Sends everything through pickle, as Ray does."""

    def run_tasks(self, work: Any, items: Any, *, shared: Any = (), **more: Any) -> Any:
        for item in items:
            yield pickle.loads(pickle.dumps(work(*pickle.loads(pickle.dumps((item, *shared))))))


def score(store: Store, head: Path, **options: Any) -> aesthetic.AestheticSummary:
    return score_images(AestheticConfig(store=store.root, head=str(head), **options), Wired())


def tables(store: Store) -> dict[str, bytes]:
    root = Path(store.root) / "aesthetics"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def oracle(store: Store, head: Path) -> dict[bytes, float]:
    """Scores by plain loops over the stored numbers."""
    from safetensors.numpy import load_file

    content = load_file(head)
    found: dict[bytes, float] = {}
    for corpus in ("a", "b"):
        for path in sorted(Path(store.embeddings(SLUG, corpus)).glob("*.parquet")):
            ids, vecs = read_embeddings(str(path))
            for id_, vector in zip(ids, vecs, strict=True):
                exact = [float(number) for number in vector]
                length = sum(number * number for number in exact) ** 0.5
                dot = sum(
                    number / length * float(weight) for number, weight in zip(exact, content["weight"][0], strict=True)
                )
                found[id_.tobytes()] = dot + float(content["bias"][0])
    return found


class TestScores:
    def test_every_vector_has_the_score_of_the_head(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        seen: list[Any] = []
        config = AestheticConfig(store=store.root, head=str(head))
        summary = score_images(config, Inline(), seen.append)
        expected = oracle(store, head)
        found: dict[bytes, float] = {}
        for piece in scored_pieces(store, SLUG):
            uri = storage.join(scores_folder(store, SLUG, piece.corpus), f"{piece.name}.parquet")
            table = read_table(uri)
            ids, _ = read_embeddings(storage.join(store.embeddings(SLUG, piece.corpus), f"{piece.name}.parquet"))
            assert table.column("image_id").to_pylist() == [id_.tobytes() for id_ in ids]
            assert table.schema.equals(aesthetic_scores.AESTHETICS, check_metadata=True)
            found |= dict(zip(table.column("image_id").to_pylist(), table.column("score").to_pylist(), strict=True))
        assert found.keys() == expected.keys() and len(found) == 56
        assert max(abs(found[id_] - expected[id_]) for id_ in found) < 1e-5
        assert summary.num_vectors == 56 and summary.num_pieces == 4 == len(seen)
        values = list(found.values())
        assert (summary.least, summary.most) == (min(values), max(values))
        assert summary.mean == pytest.approx(sum(values) / 56)
        assert list(summary.bins) == [
            sum(1 for value in values if (bin_ == 0 or value >= bin_ / 2) and (bin_ == 21 or value < (bin_ + 1) / 2))
            for bin_ in range(22)
        ]
        assert verify(store.root).problems == []

    def test_the_rounding_of_stored_vectors_is_no_part_of_the_score(self) -> None:
        head = AestheticHead(np.arange(DIM, dtype=np.float64), 1.0, "0" * 64)
        _, vecs = vectors(20, seed=9)
        longer = (vecs.astype(np.float32) * 2).astype(np.float16)
        assert head.score(longer).tolist() == pytest.approx(head.score(vecs).tolist(), abs=1e-6)
        assert head.score(np.empty((0, DIM), dtype=np.float16)).shape == (0,)

    def test_only_named_corpora(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        assert score(store, head, corpus=("b",)).num_vectors == 25
        assert storage.list_folders(storage.join(store.root, "aesthetics", SLUG)) == ["b"]
        with pytest.raises(ConfigError, match="corpora with vectors: a, b"):
            score(store, head, corpus=("b", "c"))


class Killed(Exception):
    """What stands for the kill of the driver."""


class TestResume:
    def test_a_killed_scoring_goes_on_and_ends_with_the_same_tables(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head = save_head(tmp_path / "head.safetensors")
        original, calls = aesthetic_scores.write_marker, []

        def dying(uri: str, **more: Any) -> None:
            calls.append(uri)
            if len(calls) == 3:
                raise Killed
            original(uri, **more)

        with monkeypatch.context() as patch:
            patch.setattr(aesthetic_scores, "write_marker", dying)
            with pytest.raises(Killed):
                score(store, head)
        summary = score(store, head)
        assert (summary.num_done_earlier, summary.num_vectors) == (2, 56)
        resumed = tables(store)
        storage.remove_folder(storage.join(store.root, "aesthetics"))
        undisturbed = score(store, head)
        assert tables(store) == resumed
        again = score(store, head)
        assert again.num_done_earlier == 4 and (again.mean, again.bins) == (undisturbed.mean, undisturbed.bins)

    def test_new_pieces_alone_are_scored(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        score(store, head)
        before = tables(store)
        fill(store, "b", 5, 10)
        assert score(store, head).num_done_earlier == 4
        assert before.items() <= tables(store).items() and len(tables(store)) == len(before) + 2

    def test_another_head_scores_all_again(self, store: Store, tmp_path: Path) -> None:
        score(store, save_head(tmp_path / "one.safetensors"))
        head = save_head(tmp_path / "two.safetensors", seed=1)
        assert score(store, head).num_done_earlier == 0
        expected = oracle(store, head)
        for piece in scored_pieces(store, SLUG):
            rows = read_table(
                storage.join(scores_folder(store, SLUG, piece.corpus), f"{piece.name}.parquet")
            ).to_pylist()
            assert all(abs(row["score"] - expected[row["image_id"]]) < 1e-5 for row in rows)

    def test_after_a_takedown_the_image_has_no_score(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        score(store, head)
        gone = vectors(30, seed=1)[0][4].tobytes()
        (tmp_path / "list.txt").write_text(gone.hex())
        apply_takedown(store, str(tmp_path / "list.txt"))
        assert score(store, head).num_vectors == 55
        ids = {row["image_id"] for name in tables(store) if name.endswith(".parquet")
               for row in read_table(f"{store.root}/aesthetics/{name}").to_pylist()}  # fmt: skip
        assert gone not in ids and len(ids) == 55
        assert verify(store.root).problems == []
        storage.remove(store.takedown_marker)
        with pytest.raises(DataError, match="takedown"):
            score(store, head)


class TestFilter:
    @pytest.mark.parametrize("min_score", [-100.0, 4.0, 5.5, 100.0])
    def test_the_images_at_or_above_a_score(self, store: Store, tmp_path: Path, min_score: float) -> None:
        head = save_head(tmp_path / "head.safetensors")
        # A score that stands in the table is one of those that are kept.
        out = tmp_path / "deny.txt"
        summary = score(store, head, min_score=min_score, deny_list=str(out))
        expected = oracle(store, head)
        pieces = scored_pieces(store, SLUG)
        kept = list(kept_keys(store, SLUG, pieces, min_score=min_score))
        assert [piece for piece, _ in kept] == pieces
        for piece, keys in kept:
            ids, _ = read_embeddings(storage.join(store.embeddings(SLUG, piece.corpus), f"{piece.name}.parquet"))
            mine = {id_.tobytes() for id_ in ids}
            assert key_bytes(keys) == sorted(id_ for id_ in mine if expected[id_] >= min_score)
        below = left_out_keys(store, SLUG, pieces, min_score=min_score, session=Inline())
        assert key_bytes(below) == sorted(id_ for id_ in expected if expected[id_] < min_score)
        assert [bytes.fromhex(line) for line in out.read_text().split()] == key_bytes(below)
        assert read_takedown_list(str(out)).ids == tuple(key_bytes(below))
        assert summary.num_below == len(below) and f"{len(below)} images are below" in summary.lines()[-1]

    def test_a_score_that_is_met_exactly_is_kept(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        score(store, head)
        (piece,) = [one for one in scored_pieces(store, SLUG, ["a"]) if one.name.startswith("a2")]
        (row,) = read_table(storage.join(scores_folder(store, SLUG, "a"), f"{piece.name}.parquet")).to_pylist()
        for min_score, num_kept in ((row["score"], 1), (np.nextafter(row["score"], 100), 0)):
            ((_, keys),) = kept_keys(store, SLUG, [piece], min_score=min_score)
            assert len(keys) == num_kept

    def test_pieces_without_scores_or_with_those_of_two_heads_are_errors(self, store: Store, tmp_path: Path) -> None:
        pieces = scored_pieces(store, SLUG)
        with pytest.raises(DataError, match=r"jobs/ingest\.py score"):
            list(kept_keys(store, SLUG, pieces, min_score=0.0))
        score(store, save_head(tmp_path / "one.safetensors"))
        two = load_aesthetic_head(str(save_head(tmp_path / "two.safetensors", seed=1)))
        aesthetic_scores.score_pieces(aesthetic_scores.ScoreTask(store=store, encoder=SLUG, pieces=(pieces[1],)), two)
        with pytest.raises(DataError, match="two"):
            list(kept_keys(store, SLUG, pieces, min_score=0.0))


class TestEncoders:
    def test_a_folder_its_beginning_or_the_only_one(self, store: Store) -> None:
        assert choose_encoder(store, None) == choose_encoder(store, "ViT-L") == choose_encoder(store, SLUG) == SLUG
        fill(store, "a", 1, 30, slug="ViT-L-14-ffff")
        for name in (None, "ViT-L", "dino"):
            with pytest.raises(ConfigError, match="give --encoder out of ViT-L-14-ffff, ViT-L-14-quickgelu"):
                choose_encoder(store, name)

    def test_a_name_as_near_takes_it(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        from mmvp_ray import encoders

        asked: list[tuple[str, str]] = []

        def resolve(name: str, *, device: str, dtype: str) -> Any:
            asked.append((name, dtype))
            return type("Spec", (), {"slug": SLUG if dtype == "float32" else f"other-{dtype}"})

        monkeypatch.setattr(encoders, "resolve_encoder", resolve)
        assert choose_encoder(store, "open_clip:ViT-L-14/openai") == SLUG
        assert {dtype for _, dtype in asked} == {"float16", "float32", "bfloat16"}

    def test_a_head_for_vectors_of_another_length_is_refused(self, store: Store, tmp_path: Path) -> None:
        bad = save_head(tmp_path / "x.safetensors", weight=np.ones((1, 7), np.float32), bias=np.ones(1, np.float32))
        with pytest.raises(ConfigError, match=r"vectors of 7 numbers .* found 12"):
            score(store, bad)
        assert tables(store) == {} and not storage.exists(storage.join(store.root, "aesthetics"))

    def test_the_summary_says_whose_head_it_is(self, store: Store, tmp_path: Path) -> None:
        head = save_head(tmp_path / "head.safetensors")
        assert not any("note" in line for line in score(store, head).lines())
        fill(store, "a", 1, 30, slug="ViT-H-14-ffff")
        lines = score(store, head, encoder="ViT-H").lines()
        assert any("OpenAI's CLIP ViT-L/14" in line for line in lines)
        assert is_heads_encoder("clip-1024x24-patch14-00") and not is_heads_encoder("ViT-L-14-336-quickgelu-00")

    def test_no_vectors_at_all(self, tmp_path: Path) -> None:
        empty = open_store(str(tmp_path / "empty"))
        with pytest.raises(ConfigError, match="mine the store first"):
            score(empty, save_head(tmp_path / "head.safetensors"))


class TestHeads:
    @pytest.mark.parametrize(
        "tensors",
        [
            {"layers.0.weight": np.ones((4, DIM), np.float32)},
            {"weight": np.ones((1, DIM), np.float32)},
            {"weight": np.ones((2, DIM), np.float32), "bias": np.ones(1, np.float32)},
            {"weight": np.ones((1, DIM), np.float32), "bias": np.ones(2, np.float32)},
            {"weight": np.ones((1, DIM), np.float32), "bias": np.ones(1, np.float32), "more": np.ones(1, np.float32)},
        ],
    )
    def test_other_networks_are_refused(self, tmp_path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
        with pytest.raises(ConfigError, match="linear head"):
            load_aesthetic_head(str(save_head(tmp_path / "x.safetensors", **tensors)))

    def test_files_that_are_no_heads(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--head"):
            load_aesthetic_head(str(tmp_path / "none.safetensors"))
        (tmp_path / "x.safetensors").write_bytes(b"?" * 100)
        with pytest.raises(DataError, match=r"x\.safetensors"):
            load_aesthetic_head(str(tmp_path / "x.safetensors"))
        (tmp_path / "x.pkl").write_bytes(b"?")
        with pytest.raises(ConfigError, match=r"\.safetensors"):
            load_aesthetic_head(str(tmp_path / "x.pkl"))
        bad = save_head(
            tmp_path / "nan.safetensors", weight=np.full((1, DIM), np.nan, np.float32), bias=np.ones(1, np.float32)
        )
        with pytest.raises(DataError, match="finite"):
            load_aesthetic_head(str(bad))


def test_a_vector_that_is_not_finite_is_a_data_error(store: Store, tmp_path: Path) -> None:
    shard = Shard(corpus="z", kind="tar", uri="/data/z.tar", num_bytes=1, etag="e")
    piece = Piece(shard=shard, index=0, last=True, samples=(), rejects=())
    ids, vecs = vectors(3, seed=7)
    vecs[1] = 0
    commit_embeddings(store, piece, SLUG, ids, vecs, [])
    with pytest.raises(DataError, match="unit length"):
        score(store, save_head(tmp_path / "head.safetensors"), corpus=("z",))


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "--store"), ({"store": "s"}, "--head"), ({"store": "s", "head": "h", "deny_list": "d"}, "--min-score")],
)
def test_what_is_missing_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AestheticConfig(**options).check()


def test_piece_order_is_that_of_the_caller(store: Store, tmp_path: Path) -> None:
    score(store, save_head(tmp_path / "head.safetensors"))
    pieces: list[PieceRef] = scored_pieces(store, SLUG)[::-1]
    assert [piece for piece, _ in kept_keys(store, SLUG, pieces, min_score=0.0)] == pieces
