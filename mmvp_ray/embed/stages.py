"""What Ray's workers run: read a shard into pieces, decode a piece, embed a piece. Each takes and gives Arrow rows of one piece."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmvp_ray.embed.apart import Apart
from mmvp_ray.embed.attempts import NUM_LOST_ACTORS, Attempts, load_noted
from mmvp_ray.embed.decode_piece import decode_piece
from mmvp_ray.embed.embed_piece import embed_pixels
from mmvp_ray.embed.encoder_process import embed_in_child
from mmvp_ray.embed.watchdog import Watchdog
from mmvp_ray.embed.wire import (
    EncodedPiece,
    PixelPiece,
    encoded_piece,
    encoded_row,
    pixel_piece,
    pixel_row,
    work_from_json,
)
from mmvp_ray.encoders import Encoder, EncoderSpec, load_for_embedding
from mmvp_ray.errors import DataError, MmvpError, ResourceError
from mmvp_ray.images.geometry import Geometry
from mmvp_ray.images.reasons import RejectReason, one_line
from mmvp_ray.sources import Reject, read_pieces
from mmvp_ray.store import Store, commit_embeddings

# Shapes: N distinct images of a piece, K of them that do not kill an encoder, D numbers in a vector.

log = logging.getLogger(__name__)

MAX_TRIES = 5
"""A piece whose actor dies so often, although it is embedded apart, ends the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob:
    """All that a worker needs to know of an embedding pass; light and picklable.

    Attributes:
        store: Where tables go.
        specs: The encoders, by slug.
        batch_size: Images in a batch.
        num_threads: CPU threads of an encoder actor.
        device: "cuda" or "cpu".
        cpu_products: As in `load_for_embedding`.
        num_actors: Encoder actors, at most.
        stuck_seconds: Longest time for one batch, or for decoding a few images.
        run: Id of the run.
    """

    store: Store
    specs: dict[str, EncoderSpec]
    batch_size: int
    num_threads: int
    device: str
    cpu_products: str = "auto"
    num_actors: int
    stuck_seconds: float
    run: str

    @property
    def geometries(self) -> list[Geometry]:
        """The distinct geometries of the encoders, in the order of the specs: pixels are made once for each."""
        return list(dict.fromkeys(spec.geometry for spec in self.specs.values()))


def read_shard(rows: pa.Table) -> Iterator[pa.Table]:
    """Read the shard of a one-row table (column `work`) and yield one row for each of its pieces that lacks something."""
    for text in rows.column("work").to_pylist():
        work = work_from_json(text)
        started = time.perf_counter()
        for piece in read_pieces(work.shard, skip=work.skip):
            seconds = time.perf_counter() - started
            yield encoded_row(
                EncodedPiece(
                    piece=piece,
                    images_done=piece.index in work.images_done,
                    missing=tuple(work.missing(piece.index)),
                    read_seconds=seconds,
                )
            )
            started = time.perf_counter()


def decode_row(row: pa.Table, job: EmbedJob) -> pa.Table:
    """Decode the piece of a one-row table for the encoders that lack it."""
    item = encoded_piece(row)
    geometries = job.geometries
    wanted = sorted({geometries.index(job.specs[slug].geometry) for slug in item.missing})
    with Watchdog(job.stuck_seconds) as watchdog:
        return pixel_row(decode_piece(job.store, item, geometries, wanted, on_chunk=watchdog.beat))


class EmbedActor:
    """Holds the encoders of a run and commits the vectors of every piece that comes by.

    An image may kill the process, or have it hang until it ends itself; Ray starts another one. A piece that killed twice is embedded in
    child processes, which tell the images that kill from the others (docs/decisions/0010).
    """

    def __init__(self, job: EmbedJob) -> None:
        import torch

        torch.set_num_threads(job.num_threads)
        self._job = job
        self._encoders: dict[str, Encoder] = {}
        self._attempts = Attempts(job.store, job.run)
        # Of the piece in work.
        self._reasons: Counter[str] = Counter()
        self._num_written_bytes = 0
        self._failure: MmvpError | None = None
        names = ", ".join(spec.name for spec in job.specs.values())
        try:
            load_noted(job.store, job.run, self._load, num_actors=job.num_actors, encoders=names)
        except MmvpError as error:
            # What an actor's __init__ raises reaches the driver as the text of a stack alone; the first piece raises it as it is.
            self._failure = error

    def _load(self) -> None:
        import torch

        for slug, spec in self._job.specs.items():
            if slug not in self._encoders:
                try:
                    self._encoders[slug] = load_for_embedding(
                        spec, device=self._job.device, cpu_products=self._job.cpu_products
                    )
                except torch.OutOfMemoryError as error:
                    raise self._too_little(spec, error) from error

    def __call__(self, row: pa.Table) -> pa.Table:
        """Embed and commit the piece of a one-row table; gives one row of numbers for the driver's bookkeeping."""
        if self._failure is not None:
            raise self._failure
        item = pixel_piece(row)
        corpus, name = item.piece.shard.corpus, item.piece.name
        summary: dict[str, Any] = dict(item.counts)
        self._num_written_bytes = int(summary["num_written_bytes"])
        self._reasons = Counter(json.loads(summary["reject_reasons"]))
        encoders: dict[str, tuple[int, float]] = {}
        started = time.perf_counter()
        num_lost = self._attempts.begin(corpus, name)
        num_without = 0
        wait: Callable[[], None] | None = None
        try:
            if num_lost >= MAX_TRIES:
                raise ResourceError(
                    f"expected encoders that outlive piece {name} of {item.piece.shard.uri}, found that {num_lost} processes died of it, "
                    "those that embedded it apart too; see the workers' logs, and whether they have memory enough: "
                    "the same command tries it anew"
                )
            embed = self._embed_apart if num_lost >= NUM_LOST_ACTORS else self._embed
            for slug in item.missing:
                began = time.perf_counter()
                found = embed(slug, item)
                encoders[slug] = (len(item.ids_N16), time.perf_counter() - began)
                if slug == item.missing[-1]:
                    # What comes now no image can kill; the two writes and this removal do not wait for one another.
                    wait = self._attempts.end(corpus, name)
                num_without += self._commit(slug, item, found)
            (wait or self._attempts.end(corpus, name))()
        except Exception:
            # Errors are not deaths: counted as such, they would lock the piece after their cause is mended.
            with contextlib.suppress(MmvpError):  # It is the first error that counts.
                self._attempts.end(corpus, name)()
            raise
        summary |= {
            "piece": name,
            "num_embedded": len(item.ids_N16) * len(item.missing) - num_without,
            "num_distinct": len(item.ids_N16),
            "num_nonfinite": num_without,
            "num_written_bytes": self._num_written_bytes,
            "reject_reasons": json.dumps(self._reasons),
            "encoders": json.dumps(encoders),
            "embed_seconds": time.perf_counter() - started,
        }
        return pa.Table.from_pylist([summary])

    def _embed(self, slug: str, item: PixelPiece) -> Apart:
        """Embed a piece in this process, which may not outlive it."""
        import torch

        self._load()
        spec = self._job.specs[slug]
        try:
            with Watchdog(self._job.stuck_seconds) as watchdog:
                vectors_ND, finite_N = embed_pixels(
                    self._encoders[slug],
                    self._pixels(slug, item),
                    batch_size=self._job.batch_size,
                    on_batch=watchdog.beat,
                )
        except MmvpError:
            raise
        except torch.OutOfMemoryError as error:
            raise self._too_little(spec, error) from error
        except torch.AcceleratorError:
            # A CUDA context does not survive such an error: nothing can be embedded in this process any more.
            log.exception("encoder %s on piece %s: this process ends itself", spec.name, item.piece.name)
            os._exit(1)
        except Exception as error:
            raise DataError(
                f"expected vectors from encoder {spec.name!r}, found {type(error).__name__} ({_line(error)}) on piece {item.piece.name} of "
                f"{item.piece.shard.uri}; mend the encoder"
            ) from error
        return Apart(vectors_ND, finite_N, {})

    def _too_little(self, spec: EncoderSpec, error: BaseException) -> ResourceError:
        return ResourceError(
            f"encoder {spec.name!r} needs more GPU memory than there is for batches of {self._job.batch_size} ({_line(error)}); "
            "use a smaller --batch-size, or fewer actors on a GPU (--gpus-per-actor)"
        )

    def _embed_apart(self, slug: str, item: PixelPiece) -> Apart:
        """Embed a piece in child processes, without the images that kill them."""
        log.warning("processes died with piece %s in work: it is embedded in child processes", item.piece.name)
        # The child has the memory, and the GPU, that this process had.
        self._encoders.clear()
        gc.collect()
        if self._job.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        return embed_in_child(
            self._job.specs[slug],
            self._pixels(slug, item),
            device=self._job.device,
            num_threads=self._job.num_threads,
            cpu_products=self._job.cpu_products,
            batch_size=self._job.batch_size,
            stuck_seconds=self._job.stuck_seconds,
            where=f"piece {item.piece.name} of {item.piece.shard.uri}",
        )

    def _pixels(self, slug: str, item: PixelPiece) -> NDArray[np.uint8]:
        return item.pixels[self._job.geometries.index(self._job.specs[slug].geometry)]

    def _commit(self, slug: str, item: PixelPiece, found: Apart) -> int:
        """Commit a piece's vectors; gives the number of images without one."""
        left_K = np.setdiff1d(np.arange(len(item.ids_N16)), list(found.killers), assume_unique=True).astype(np.intp)
        reasons = dict.fromkeys(left_K[~found.finite_K].tolist(), (RejectReason.NONFINITE_VECTOR, f"encoder {slug}"))
        for row, ended in found.killers.items():
            reason = RejectReason.ENCODER_TIMED_OUT if ended.timed_out else RejectReason.ENCODER_CRASHED
            reasons[row] = (reason, f"encoder {slug}: a process with this image {ended.how}")
        rejects = [
            Reject(uri=item.places[row][0], member=item.places[row][1], reason=reasons[row][0], detail=reasons[row][1])
            for row in sorted(reasons)
        ]
        self._reasons.update(str(reason) for reason, _ in reasons.values())
        self._num_written_bytes += commit_embeddings(
            self._job.store,
            item.piece,
            slug,
            item.ids_N16[left_K[found.finite_K]],
            found.vectors_KD[found.finite_K],
            rejects,
        )
        return len(rejects)


def _line(error: BaseException) -> str:
    return one_line(str(error), max_chars=200)
