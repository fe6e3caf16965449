"""A piece that killed its actor is embedded in child processes: exactly the images that kill are rejected, all other vectors are bit-equal."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmvp_ray import storage
from mmvp_ray.embed import stages as module
from mmvp_ray.embed.attempts import NUM_LOST_ACTORS, Attempts
from mmvp_ray.embed.decode_piece import decode_piece
from mmvp_ray.embed.stages import MAX_TRIES, EmbedActor, EmbedJob
from mmvp_ray.embed.wire import EncodedPiece, pixel_row
from mmvp_ray.encoders import resolve_encoder
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.sources.piece import Piece, Sample, Shard
from mmvp_ray.store import Store, open_store, read_table
from mmvp_ray.store.verify import verify
from tests.integration.poison_encoder import poison

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).resolve().parents[2]
SHARD = Shard(corpus="c", kind="tar", uri="/x.tar", num_bytes=1, etag="e")
POISON, PLAIN = "python:tests.integration.poison_encoder:factory", "miniature:clip"
# The watchdog of an actor that is called here would end this very process, all other tests of it included.
STUCK_SECONDS = 120.0


def job(root: Path, *encoders: str, batch_size: int = 2, stuck_seconds: float = STUCK_SECONDS) -> EmbedJob:
    specs = [resolve_encoder(name, device="cpu") for name in encoders or (POISON,)]
    return EmbedJob(
        store=open_store(str(root)),
        specs={spec.slug: spec for spec in specs},
        batch_size=batch_size,
        num_threads=1,
        device="cpu",
        num_actors=1,
        stuck_seconds=stuck_seconds,
        run="r",
    )


def row(job: EmbedJob, images: Sequence[tuple[str, bytes]]) -> Any:
    samples = tuple(Sample(uri=SHARD.uri, member=name, offset=0, data=data) for name, data in images)
    item = EncodedPiece(
        piece=Piece(shard=SHARD, index=0, last=True, samples=samples, rejects=()),
        images_done=False,
        missing=tuple(job.specs),
        read_seconds=0.0,
    )
    return pixel_row(decode_piece(job.store, item, job.geometries, range(len(job.geometries))))


def lost(store: Store, number: int) -> None:
    """As `number` actors of this run left it that died of the piece."""
    for _ in range(number):
        Attempts(store, "r").begin("c", SHARD.piece_name(0))


def attempt_files(store: Store) -> list[Path]:
    return [path for path in (Path(store.root) / "attempts").rglob("*") if path.is_file()]


def tables(store: Store, slug: str) -> tuple[Any, list[dict[str, Any]]]:
    """The vectors' table, and the rows of the rejects beside it."""
    folder = storage.join(store.embeddings(slug, "c"), SHARD.piece_name(0))
    rejects = f"{folder}.rejects.parquet"
    return read_table(f"{folder}.parquet"), read_table(rejects).to_pylist() if storage.exists(rejects) else []


def photos(make_jpeg: Callable[..., bytes], num: int) -> list[tuple[str, bytes]]:
    return [(f"{i:02d}.jpg", make_jpeg(i)) for i in range(num)]


def test_every_way_to_die_costs_one_image(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    good = photos(make_jpeg, 7)
    kinds = ["segfault", "hang", "memory"]
    images = list(good)
    for place, kind in zip([0, 3, 9], kinds, strict=True):
        images.insert(place, (f"{kind}.png", poison(kind)))
    plan = job(tmp_path / "a", POISON, PLAIN, stuck_seconds=5.0)
    poisonous, plain = plan.specs
    lost(plan.store, NUM_LOST_ACTORS)
    actor = EmbedActor(plan)
    summary = actor(row(plan, images)).to_pylist()[0]
    undisturbed = job(tmp_path / "b")
    EmbedActor(undisturbed)(row(undisturbed, good))

    vectors, rejects = tables(plan.store, poisonous)
    assert vectors.equals(tables(undisturbed.store, poisonous)[0])
    assert [(reject["member"], reject["reason"]) for reject in rejects] == [
        (f"{kind}.png", "encoder_timed_out" if kind == "hang" else "encoder_crashed") for kind in kinds
    ]
    # Of memory it has half of what is free: the machine never comes near the point where the kernel, or Ray, kills.
    ends = ["died of SIGSEGV", "took longer than 5 s", "ended with exit code 1"]
    assert [reject["detail"] for reject in rejects] == [
        f"encoder {poisonous}: a process with this image {end}" for end in ends
    ]
    # The encoder that no image kills has them all.
    assert tables(plan.store, plain)[0].num_rows == 10 and tables(plan.store, plain)[1] == []
    assert (summary["num_distinct"], summary["num_embedded"], summary["num_nonfinite"]) == (10, 17, 3)
    assert attempt_files(plan.store) == [] and verify(plan.store.root).problems == []

    # It goes on with its own encoders, which it had given up for the child's sake.
    other = job(tmp_path / "other", POISON, PLAIN)
    actor._job, actor._attempts = other, Attempts(other.store, "r")
    actor(row(other, good))
    assert tables(other.store, poisonous)[0].equals(vectors)


@pytest.mark.parametrize("num_lost", [0, 1, NUM_LOST_ACTORS])
def test_a_piece_that_was_unlucky_has_the_same_tables(
    tmp_path: Path, make_jpeg: Callable[..., bytes], num_lost: int
) -> None:
    trees = []
    for name, number in (("a", num_lost), ("b", 0)):
        plan = job(tmp_path / name, PLAIN, batch_size=3)
        lost(plan.store, number)
        EmbedActor(plan)(row(plan, photos(make_jpeg, 10)))
        root = Path(plan.store.root)
        trees.append({path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()})
    assert trees[0] == trees[1]


def test_a_piece_with_which_every_driver_was_killed_has_the_same_tables(
    tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    plans = [job(tmp_path / name, PLAIN, batch_size=3) for name in ("a", "b")]
    for number in range(MAX_TRIES):
        Attempts(plans[0].store, f"killed{number}").begin("c", SHARD.piece_name(0))
    for plan in plans:
        EmbedActor(plan)(row(plan, photos(make_jpeg, 4)))
    (slug,) = plans[0].specs
    (vectors, rejects), (others, _) = (tables(plan.store, slug) for plan in plans)
    assert vectors.equals(others) and vectors.num_rows == 4 and rejects == []


def test_a_piece_that_kills_although_embedded_apart_ends_the_run(
    tmp_path: Path, make_jpeg: Callable[..., bytes]
) -> None:
    plan = job(tmp_path, PLAIN)
    lost(plan.store, MAX_TRIES)
    with pytest.raises(ResourceError, match="5 processes died of it") as caught:
        EmbedActor(plan)(row(plan, photos(make_jpeg, 2)))
    assert "\n" not in str(caught.value)
    # Where the cause was mended (more memory, another driver), the next run comes through.
    EmbedActor(plan)(row(plan, photos(make_jpeg, 2)))
    assert attempt_files(plan.store) == []


def test_an_encoder_that_dies_of_anything_is_no_images_fault(
    tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = job(tmp_path, PLAIN)
    lost(plan.store, NUM_LOST_ACTORS)
    spec = next(iter(plan.specs.values()))
    broken = dataclasses.replace(spec, weights_sha256="0" * 64)
    monkeypatch.setattr(module, "load_for_embedding", lambda *_, **__: None)
    plan = dataclasses.replace(plan, specs={spec.slug: broken})
    with pytest.raises(
        ResourceError, match="expected a child process to embed with miniature:clip in, found that it ended"
    ):
        EmbedActor(plan)(row(plan, photos(make_jpeg, 2)))


HUNGRY = """
import os
import torch
from mmvp_ray.images.geometry import Geometry
if "FREE_MB" in os.environ:  # A machine with so little memory.
    import psutil
    whole = psutil.virtual_memory
    psutil.virtual_memory = lambda: whole()._replace(available=int(os.environ["FREE_MB"]) << 20)
class Encoder:
    geometry = Geometry(library="pil", resize="shortest", resize_px=(64, 64), interpolation="bicubic", crop_px=(64, 64))
    dim = 4
    def embed(self, pixels):
        activations = torch.ones(len(pixels) * (100 << 20) // 4)  # 100 MB for an image
        return torch.ones(len(pixels), 4) * activations[-1]
def make(*, device, dtype):
    return Encoder()
"""


def test_memory_that_no_batch_has_enough_of_is_no_images_fault(
    tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hungry_encoder.py").write_text(HUNGRY)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = job(tmp_path / "store", "python:hungry_encoder:make", batch_size=4)
    lost(plan.store, NUM_LOST_ACTORS)
    monkeypatch.setenv("FREE_MB", "600")
    with pytest.raises(
        ResourceError, match=r"expected a child process to embed with .* found that it ended with exit code 1"
    ):
        EmbedActor(plan)(row(plan, photos(make_jpeg, 4)))


def test_an_error_of_loading_is_raised_by_the_first_piece(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    plan = job(tmp_path, PLAIN)
    spec = next(iter(plan.specs.values()))
    plan = dataclasses.replace(plan, specs={spec.slug: dataclasses.replace(spec, weights_sha256="0" * 64)})
    actor = EmbedActor(plan)
    with pytest.raises(DataError, match="expected weights 0000"):
        actor(row(plan, photos(make_jpeg, 2)))


def test_an_exception_of_the_encoder_names_it_and_the_piece(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    plan = job(tmp_path)
    images = [*photos(make_jpeg, 2), ("r.png", poison("raise"))]
    with pytest.raises(DataError, match=r"ValueError .no such picture in my book. on piece x-.* of /x.tar") as caught:
        EmbedActor(plan)(row(plan, images))
    assert "\n" not in str(caught.value)


def test_runs_that_failed_lock_no_piece(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    plan = job(tmp_path)
    images = [*photos(make_jpeg, 2), ("r.png", poison("raise"))]
    for _ in range(MAX_TRIES + 1):
        with pytest.raises(DataError, match="no such picture in my book"):
            EmbedActor(plan)(row(plan, images))
        assert attempt_files(plan.store) == []


def test_what_a_failed_commit_says_is_not_lost_where_the_store_takes_nothing(
    tmp_path: Path, make_jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = job(tmp_path, PLAIN)
    actor, item = EmbedActor(plan), row(plan, photos(make_jpeg, 2))

    def full(*_: object) -> int:
        raise ResourceError("the disk is full")

    def lost_too(*_: object) -> None:
        raise ResourceError("cannot be removed")

    monkeypatch.setattr(module, "commit_embeddings", full)
    monkeypatch.setattr(storage, "remove", lost_too)
    with pytest.raises(ResourceError, match="the disk is full"):
        actor(item)


ACTOR = """
import sys
from pathlib import Path
from tests.conftest import jpeg
from tests.integration.poison_encoder import poison
from tests.integration.test_embed_quarantine import job, photos, row
from mmvp_ray.embed.stages import EmbedActor
plan = job(Path(sys.argv[1]), stuck_seconds=float(sys.argv[3]))
actor = EmbedActor(plan)
print("ready", flush=True)
actor(row(plan, [*photos(jpeg, 2), ("p.png", poison(sys.argv[2]))]))
"""


@pytest.mark.parametrize(
    ("kind", "stuck_seconds", "sign"), [("hang", 3, "Timeout"), ("cuda", 60, "this process ends itself")]
)
def test_an_actor_that_hangs_or_lost_its_gpu_ends_itself(
    tmp_path: Path, kind: str, stuck_seconds: int, sign: str
) -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", ACTOR, str(tmp_path), kind, str(stuck_seconds)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert ended.returncode == 1 and ended.stdout == "ready\n"
    assert sign in ended.stderr and "poison_encoder.py" in ended.stderr
    assert time.monotonic() - started < 190
    # What it died of is on the disk for the next one.
    assert [path.name for path in attempt_files(open_store(str(tmp_path)))] == [f"{SHARD.piece_name(0)}.1-r"]
    assert Attempts(open_store(str(tmp_path)), "r").begin("c", SHARD.piece_name(0)) == 1


def test_a_decoder_that_hangs_ends_its_process(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from mmvp_ray.embed import decode_piece as module, stages
from mmvp_ray.embed.wire import EncodedPiece, encoded_row
from mmvp_ray.sources.piece import Piece, Sample
from tests.integration.test_embed_quarantine import SHARD, job
plan = job(Path(sys.argv[1]), stuck_seconds=1.0)
module.decode = lambda data: time.sleep(600)
piece = Piece(shard=SHARD, index=0, last=True, samples=(Sample(uri="u", member="m", offset=0, data=b"x"),), rejects=())
stages.decode_row(encoded_row(EncodedPiece(piece=piece, images_done=False, missing=tuple(plan.specs), read_seconds=0.0)), plan)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert ended.returncode == 1 and "Timeout" in ended.stderr
    assert storage.exists(storage.join(open_store(str(tmp_path)).images("c"), SHARD.piece_name(0) + ".attempt"))


def test_num_images_without_a_vector_is_no_matter_of_order(tmp_path: Path, make_jpeg: Callable[..., bytes]) -> None:
    """Vectors that are not finite and images that kill share one table, in the piece's order."""
    from mmvp_ray.embed.apart import Apart
    from mmvp_ray.embed.wire import pixel_piece
    from mmvp_ray.images.isolated_process import Ended

    plan = job(tmp_path, PLAIN)
    (slug,) = plan.specs
    item = pixel_piece(row(plan, photos(make_jpeg, 5)))
    vectors = np.full((4, plan.specs[slug].dim), 0.1, dtype=np.float16)
    ended = Ended(timed_out=False, how="died of SIGBUS", last_words="x")
    found = Apart(vectors, np.array([True, False, True, False]), {2: ended})
    assert EmbedActor(plan)._commit(slug, item, found) == 3
    table, rejects = tables(plan.store, slug)
    assert table.column("image_id").to_pylist() == [item.ids_N16[0].tobytes(), item.ids_N16[3].tobytes()]
    assert [(reject["member"], reject["reason"]) for reject in rejects] == [
        ("01.jpg", "nonfinite_vector"), ("02.jpg", "encoder_crashed"), ("04.jpg", "nonfinite_vector"),
    ]  # fmt: skip
