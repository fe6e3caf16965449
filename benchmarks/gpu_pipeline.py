"""From tars to both encoders' vectors: read by a thread, decoded by processes, copied and embedded on a device at one time."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_bench import Bench, CheckError, Found
from benchmarks.gpu_embed import LEAST_COSINE, NUM_CHECKED, Towers, batch_of, check_vectors

if TYPE_CHECKING:
    import torch

# Shapes: N images, B of them in a batch, C = 3, H x W pixels, D numbers of a vector.

GOAL_END_TO_END = 0.9
GOAL_RATE = 1400.0
CHUNK_IMAGES = 16
"""Images that a decoder gets at a time."""
NUM_SLABS = 6
"""Batches of pixels in memory: one goes to the device while others are filled."""
PATIENCE_S = 120.0
SHARDS = {"full": (4, 256, 24_576), "smoke": (2, 24, 96)}
"""Tars, images of each, and images that are read in all: the tars again and again."""

_HERE: list[Any] = []
"""In a decoder: the pixels of each slab for each geometry, and the geometries."""


def _open_decoder(raws: list[Any], batch: int, geometries: list[Any]) -> None:
    if any(geometry.library == "torchvision" for geometry in geometries):
        import torch

        torch.set_num_threads(1)
    _HERE[:] = [[_views(raw, batch, geometries) for raw in raws], geometries]


def _views(raw: Any, batch: int, geometries: list[Any]) -> list[Any]:
    """A slab's memory as one (B, 3, H, W) for each geometry."""
    flat, views, first = np.frombuffer(raw, dtype=np.uint8), [], 0
    for geometry in geometries:
        shape = (batch, 3, *geometry.shape_px)
        views.append(flat[first : first + int(np.prod(shape))].reshape(shape))
        first += views[-1].size
    return views


def _warm(encoded: bytes) -> None:
    # Imports, torchvision's among them, take a process longer than decoding a hundred images.
    decode_into(_HERE[0][0], 0, [encoded], _HERE[1])
    # Long enough that no process takes the warming of another.
    time.sleep(0.5)


def decode_into(views: list[Any], first: int, encoded: list[bytes], geometries: list[Any]) -> None:
    """What embed/decode_piece does with an image, less its tables: id, decode, and pixels for each geometry."""
    from mmvp_ray.images.decode import Decoded, decode
    from mmvp_ray.images.geometry import apply_geometry
    from mmvp_ray.sources.piece import image_id

    for place, data in enumerate(encoded, start=first):
        image_id(data)
        found = decode(data)
        if not isinstance(found, Decoded):
            raise CheckError(f"pipeline: expected images that decode, found {found.reason}: {found.detail}")
        for view, geometry in zip(views, geometries, strict=True):
            view[place] = apply_geometry(found, geometry)


def _decode(slab: int, first: int, encoded: list[bytes]) -> float:
    started = time.process_time()
    decode_into(_HERE[0][slab], first, encoded, _HERE[1])
    return time.process_time() - started


class Decoders:
    """A thread reads tars and processes decode them, batch after batch, into memory that the device copies from."""

    def __init__(self, towers: Towers, bench: Bench, batch: int) -> None:
        geometries = [encoder.spec.geometry for encoder in towers.encoders.values()]
        num_bytes = batch * sum(3 * geometry.shape_px[0] * geometry.shape_px[1] for geometry in geometries)
        context = multiprocessing.get_context("spawn")
        raws = [context.RawArray(ctypes.c_uint8, num_bytes) for _ in range(NUM_SLABS)]
        self.batch, self.views = batch, [_views(raw, batch, geometries) for raw in raws]
        self._pointers = [ctypes.addressof(raw) for raw in raws] if bench.device == "cuda" else []
        self._num_bytes, self.is_pinned = num_bytes, bool(self._pointers)
        self._num_processes = bench.decoders
        self._pool = context.Pool(bench.decoders, _open_decoder, (raws, batch, geometries))
        self._free: queue.Queue[int] = queue.Queue()
        self._full: queue.Queue[int | BaseException] = queue.Queue()
        self._left = [0] * NUM_SLABS
        self.decode_cpu_s = self.reader_wait_s = self.wait_s = 0.0

    def __enter__(self) -> Decoders:
        import torch

        # Memory that is shared with the decoders and pinned as well: pixels are copied once, by the device.
        for number, pointer in enumerate(self._pointers):
            if int(torch.cuda.cudart().cudaHostRegister(pointer, self._num_bytes, 0)):
                # Of a file that is no memory, say. The error would else be taken for that of the next kernel.
                with contextlib.suppress(RuntimeError):
                    torch.zeros(1, device="cuda")
                self.is_pinned, self._pointers = False, self._pointers[:number]
                break
        return self

    def __exit__(self, *_error: object) -> None:
        import torch

        self._pool.terminate()
        self._pool.join()
        for pointer in self._pointers:
            torch.cuda.cudart().cudaHostUnregister(pointer)

    def warm_up(self, tars: list[Path]) -> None:
        """Let every process import what it needs, and decode an image."""
        encoded = next(read_again_and_again(tars))
        # A process that cannot start is started again and again: not to be waited for without end.
        self._pool.map_async(_warm, [encoded] * self._num_processes, chunksize=1).get(PATIENCE_S)

    def start(self, tars: list[Path], num_batches: int) -> None:
        """Read and decode from now on."""
        for slab in range(NUM_SLABS):
            self._free.put(slab)
        threading.Thread(target=self._read, args=(tars, num_batches), daemon=True).start()

    def take(self) -> int:
        """The number of a slab that is full; waits for it.

        Raises:
            CheckError: an image did not decode, or nothing came for two minutes.
        """
        started = time.perf_counter()
        try:
            found = self._full.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise CheckError(
                f"pipeline: expected a batch within {PATIENCE_S:.0f} s, found none; did a decoder die?"
            ) from None
        self.wait_s += time.perf_counter() - started
        if isinstance(found, BaseException):
            raise found
        return found

    def give_back(self, slab: int) -> None:
        """The slab's pixels are copied: it may be filled anew."""
        self._free.put(slab)

    def _read(self, tars: list[Path], num_batches: int) -> None:
        try:
            encoded = read_again_and_again(tars)
            for _ in range(num_batches):
                started = time.perf_counter()
                slab = self._free.get()
                self.reader_wait_s += time.perf_counter() - started
                firsts = range(0, self.batch, CHUNK_IMAGES)
                self._left[slab] = len(firsts)
                for first in firsts:
                    chunk = [next(encoded) for _ in range(min(CHUNK_IMAGES, self.batch - first))]
                    self._pool.apply_async(
                        _decode,
                        (slab, first, chunk),
                        callback=lambda cpu_s, slab=slab: self._decoded(slab, cpu_s),
                        error_callback=self._full.put,
                    )
        except Exception as error:
            self._full.put(error)

    def _decoded(self, slab: int, cpu_s: float) -> None:
        # Called by the pool's one thread for results.
        self.decode_cpu_s += cpu_s
        self._left[slab] -= 1
        if not self._left[slab]:
            self._full.put(slab)


def read_again_and_again(tars: list[Path]) -> Iterator[bytes]:
    """The encoded images of tars, by the reader that jobs use, without end."""
    from mmvp_ray.sources import list_shards, read_pieces

    while True:
        for tar in tars:
            for shard in list_shards("b", str(tar)):
                for piece in read_pieces(shard):
                    for sample in piece.samples:
                        yield sample.data


def measure_pipeline(towers: Towers, bench: Bench, root: Path, embed: dict[str, Any] | None, found: Found) -> None:
    """Images a second from tars to both encoders' vectors, in batches of the size that part embed found fastest."""
    import torch

    from benchmarks.embed import make_shards

    num_tars, per_tar, num_images = SHARDS[bench.scale]
    (root / "tars").mkdir()
    tars = make_shards(root / "tars", num_tars, per_tar)
    batch, alone = batch_of(embed, bench), embed["both"]["images_per_second"] if embed else 0.0
    expected = _expected(towers, tars)
    num_batches = num_images // batch
    with Decoders(towers, bench, batch) as decoders:
        for encoder, view in zip(towers.encoders.values(), decoders.views[0], strict=True):
            encoder.embed(torch.from_numpy(view))
        bench.synchronise()
        decoders.warm_up(tars)
        decoders.start(tars, num_batches)
        started, cpu_started = time.perf_counter(), time.process_time()
        vectors, busy_s = _embed_batches(towers, bench, decoders, num_batches)
        seconds, main_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    for name, vectors_ND in vectors.items():
        if vectors_ND.shape[0] != num_batches * batch or not bool(torch.isfinite(vectors_ND).all()):
            raise CheckError(
                f"pipeline, {name}: expected {num_batches * batch:,} finite vectors, found {tuple(vectors_ND.shape)} or NaN"
            )
        # Kept in fp16, whose rounding moves a cosine by less than the bound leaves.
        check_vectors(
            f"pipeline, {name}", vectors_ND[: len(expected[name])].float(), expected[name], LEAST_COSINE["float16"]
        )
    rate = num_batches * batch / seconds
    figures = {
        "num_images": num_batches * batch,
        "bytes_per_image": sum(tar.stat().st_size for tar in tars) / (num_tars * per_tar),
        "geometry_library": next(iter(towers.encoders.values())).spec.geometry.library,
        "batch": batch,
        "is_pinned": decoders.is_pinned,
        "decoders": bench.decoders,
        "seconds": seconds,
        "images_per_second": rate,
        "share_of_embed": rate / alone if alone else None,
        "cores_decoding": decoders.decode_cpu_s / seconds,
        "decode_images_per_core_second": num_batches * batch / decoders.decode_cpu_s,
        "cores_main_process": main_cpu_s / seconds,
        "device_busy_share": busy_s / seconds,
        "device_waits_for_pixels_seconds": decoders.wait_s,
        "reader_waits_for_device_seconds": decoders.reader_wait_s,
    }
    of_embed = (
        f"{figures['share_of_embed']:.1%} of embed" if alone else "share of embed not known (that part was left out)"
    )
    print(
        f"pipeline: {rate:,.0f} images/s from tars to both encoders' vectors (goal {GOAL_RATE:,.0f} on an H200), {of_embed} (goal {GOAL_END_TO_END:.0%}); "
        f"{bench.decoders} decoders use {figures['cores_decoding']:.1f} cores ({figures['decode_images_per_core_second']:.0f} images/s each), the main "
        f"process {figures['cores_main_process']:.1f}; device busy {figures['device_busy_share']:.1%}; in {seconds:.1f} s it waited "
        f"{decoders.wait_s:.1f} s for pixels, the reader {decoders.reader_wait_s:.1f} s for free memory",
        flush=True,
    )
    found.add(**figures)


def _expected(towers: Towers, tars: list[Path]) -> dict[str, torch.Tensor]:
    """Vectors of the first images, decoded here, one after the other."""
    import torch

    encoded = [data for data, _ in zip(read_again_and_again(tars), range(NUM_CHECKED), strict=False)]
    geometries = [encoder.spec.geometry for encoder in towers.encoders.values()]
    views = [np.empty((NUM_CHECKED, 3, *geometry.shape_px), dtype=np.uint8) for geometry in geometries]
    decode_into(views, 0, encoded, geometries)
    return {
        name: encoder.embed(torch.from_numpy(view))
        for (name, encoder), view in zip(towers.encoders.items(), views, strict=True)
    }


def _embed_batches(
    towers: Towers, bench: Bench, decoders: Decoders, num_batches: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Vectors of both encoders, (N, D) fp16 on the host, and the seconds that the device computed for."""
    import torch

    parts: dict[str, list[torch.Tensor]] = {name: [] for name in towers.encoders}
    is_cuda = bench.device == "cuda"
    copying = torch.cuda.Stream() if is_cuda else None
    marks: list[tuple[Any, Any]] = []
    busy_s = 0.0
    for _ in range(num_batches):
        slab = decoders.take()
        pixels = [torch.from_numpy(view) for view in decoders.views[slab]]
        if copying is not None:
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(copying):
                pixels = [part.to("cuda", non_blocking=True) for part in pixels]
                copied = torch.cuda.Event()
                copied.record()
            computing.wait_event(copied)
            for part in pixels:
                part.record_stream(computing)
            marks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            marks[-1][0].record()
        started = time.perf_counter()
        with torch.inference_mode():
            for (name, encoder), part in zip(towers.encoders.items(), pixels, strict=True):
                parts[name].append(torch.nn.functional.normalize(encoder.embed(part)).half())
        if copying is not None:
            marks[-1][1].record()
            # The copy is done long before the products that were just asked for.
            copied.synchronize()
        else:
            busy_s += time.perf_counter() - started
        decoders.give_back(slab)
        # No more than two batches are asked for at a time.
        if len(marks) > 1:
            marks[-2][1].synchronize()
    vectors = {name: torch.cat(part).cpu() for name, part in parts.items()}
    return vectors, busy_s + sum(first.elapsed_time(last) for first, last in marks) / 1000
