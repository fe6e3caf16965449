"""Images a second on one core: our decoder against Pillow alone and against faster ones, before and after the resize: `python -m benchmarks.decode`.

All decoders take turns in one process with one thread on one core, round by round. Speeds are medians over the rounds, ratios medians of
the ratios within a round to `mmvp_ray`, the decoder as it is (first row). "Decode" ends with an array; "decode and resize" with the pixels
of an encoder: CLIP's geometry at 224 px, by PIL's resize, or by torchvision's with --library torchvision.

The rest of a row says what the speed would cost: pixels other than ours (of the whole images), the least cosine between embeddings of both
(miniature:clip, and open_clip's ViT-B-32 with random weights in float32), seconds and resident MB of its import beside a decode worker
(of the first row: of the worker itself), MB that a process of its own grows by after its first pass, and the odd JPEGs of the test data that it
takes where we reject them, the other way round, and with other pixels.

A decoder that is not installed is left out, with the reason. To try one without installing it: put a folder of it on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.contest import machine, run_apart
from benchmarks.decoders import DECODERS, REFERENCE, as_array, ours

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from benchmarks.decoders import Pixels
    from mmvp_ray.images.geometry import Geometry

    Embed = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NUM_PASSES = 3
BATCH_SIZE = 25


def import_cost(name: str) -> dict[str, float]:
    """What a decoder's import costs a decode worker that has all else; of ours: what the worker costs a bare Python."""
    process = psutil.Process()
    before_bytes, started = process.memory_info().rss, time.perf_counter()
    ours()
    import mmvp_ray.images.geometry  # noqa: F401

    if name != REFERENCE:
        before_bytes, started = process.memory_info().rss, time.perf_counter()
        DECODERS[name]()
    seconds = time.perf_counter() - started
    return {"import_seconds": seconds, "import_mb": (process.memory_info().rss - before_bytes) / 2**20}


def race(names: Sequence[str], paths: Sequence[str], library: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Images a second of each decoder in each round.

    Args:
        names: Keys of DECODERS.
        paths: Tars of JPEGs.
        library: Whose resize.
        rounds: How often each has its turn, after one that does not count.
    """
    from mmvp_ray.images.geometry import apply_geometry

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if library == "torchvision":
        import torch

        torch.set_num_threads(1)
    geometry = clip_geometry(library)
    decoders = {name: DECODERS[name]() for name in names}
    images = read_jpegs(paths)

    def one_pass(work: Callable[[bytes], object]) -> float:
        started = time.perf_counter()
        for data in images:
            work(data)
        return len(images) / (time.perf_counter() - started)

    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, run in decoders.items():
            speeds = {
                "images_per_second": one_pass(lambda data, run=run: as_array(run(data))),
                "decode_and_resize_per_second": one_pass(lambda data, run=run: apply_geometry(run(data), geometry)),
            }
            if number:
                found[name].append(speeds)
    return found


def compare(name: str, paths: Sequence[str], shapes: Sequence[tuple[Geometry, str]]) -> dict[str, Any]:
    """A decoder's pixels against ours, and how its process grows.

    Args:
        name: A key of DECODERS.
        paths: Tars of JPEGs.
        shapes: Geometries, and where the pixels of all images go that this decoder gives.
    """
    import numpy as np

    from mmvp_ray.images.geometry import apply_geometry

    run, reference = DECODERS[name](), ours()
    images = read_jpegs(paths)
    resident_bytes = []
    for _ in range(NUM_PASSES):
        for data in images:
            apply_geometry(run(data), clip_geometry("pil"))
        resident_bytes.append(psutil.Process().memory_info().rss)
    num_pixels = num_same = greatest = 0
    for data in images:
        theirs_HWC, ours_HWC = as_array(run(data)).astype(np.int16), as_array(reference(data))
        difference_HW = np.abs(theirs_HWC - ours_HWC).max(axis=2)
        num_pixels, num_same = num_pixels + difference_HW.size, num_same + int((difference_HW == 0).sum())
        greatest = max(greatest, int(difference_HW.max()))
    for geometry, path in shapes:
        np.save(path, np.stack([apply_geometry(run(data), geometry) for data in images]))
    return {
        "identical_share": num_same / num_pixels,
        "greatest_difference": greatest,
        "growth_mb": (resident_bytes[-1] - resident_bytes[0]) / 2**20,
    }


def odd(name: str, folder: str) -> dict[str, int]:
    """What a decoder makes of the odd JPEGs, each told as a count."""
    import numpy as np

    from mmvp_ray.images.sniff import sniff

    run, reference = DECODERS[name](), ours()
    counts = {"odd_jpegs": 0, "odd_taken": 0, "odd_refused": 0, "odd_other_pixels": 0}

    def attempt(decoder: Callable[[bytes], Pixels], data: bytes) -> NDArray[np.uint8] | None:
        try:
            return as_array(decoder(data))
        except Exception:
            return None

    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        if sniff(data) != "JPEG":
            continue
        theirs_HWC, ours_HWC = attempt(run, data), attempt(reference, data)
        counts["odd_jpegs"] += 1
        counts["odd_taken"] += theirs_HWC is not None and ours_HWC is None
        counts["odd_refused"] += theirs_HWC is None and ours_HWC is not None
        counts["odd_other_pixels"] += (
            theirs_HWC is not None and ours_HWC is not None and not np.array_equal(theirs_HWC, ours_HWC)
        )
    return counts


def _embedders() -> list[tuple[Geometry, Embed]]:
    """Encoders for the cosine, each with its geometry."""
    import open_clip
    import torch

    from mmvp_ray.encoders import load_encoder, resolve_encoder

    spec = resolve_encoder("miniature:clip", device="cpu")
    miniature = load_encoder(spec, device="cpu")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    mean_3, std_3 = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)

    def clip(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return model.encode_image((pixels_BCHW / 255.0 - mean_3[:, None, None]) / std_3[:, None, None])

    def embed_with(embed: Callable[[torch.Tensor], torch.Tensor]) -> Embed:
        def run(pixels_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                parts = torch.from_numpy(pixels_NCHW).split(BATCH_SIZE)
                return torch.cat([torch.nn.functional.normalize(embed(part).double(), dim=1) for part in parts]).numpy()

        return run

    return [(spec.geometry, embed_with(miniature.embed)), (clip_geometry("pil"), embed_with(clip))]


def least_cosines(folder: str, names: Sequence[str]) -> dict[str, float]:
    """The least cosine between an image's embeddings, theirs and ours, over images and encoders; 1 where all pixels are equal."""
    import numpy as np

    least = dict.fromkeys(names, 1.0)
    for which, (_, embed) in enumerate(_embedders()):
        ours_NCHW = np.load(pixels_path(folder, REFERENCE, which))
        for name in names:
            theirs_NCHW = np.load(pixels_path(folder, name, which))
            other_N = (theirs_NCHW != ours_NCHW).any(axis=(1, 2, 3))
            if other_N.any():
                cosine_N = (embed(theirs_NCHW[other_N]) * embed(ours_NCHW[other_N])).sum(axis=1)
                least[name] = min(least[name], float(cosine_N.min()))
    return least


def clip_geometry(library: str) -> Geometry:
    """CLIP's geometry at 224 px, by open_clip ("pil") or by transformers ("torchvision")."""
    from mmvp_ray.images.geometry import Geometry

    return Geometry(
        library=library, resize="shortest", resize_px=(224, 224), interpolation="bicubic", crop_px=(224, 224)
    )


def pixels_path(folder: str, name: str, which: int) -> str:
    """Where the pixels lie that a decoder gives for an encoder."""
    return str(Path(folder) / f"{list(DECODERS).index(name)}-{which}.npy")


def read_jpegs(paths: Sequence[str]) -> list[bytes]:
    """All JPEGs of tars, in order."""
    images = []
    for path in paths:
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.lower().endswith((".jpg", ".jpeg")) else None
                if content is not None:
                    images.append(content.read())
    return images


def row(name: str, speeds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over a decoder's rounds, and of its ratios to ours."""

    def ratio(what: str) -> float:
        return statistics.median(a[what] / b[what] for a, b in zip(speeds[name], speeds[REFERENCE], strict=True))

    def median(what: str) -> float:
        return statistics.median(found[what] for found in speeds[name])

    return {
        "decoder": name,
        "images_per_second": median("images_per_second"),
        "ratio": ratio("images_per_second"),
        "decode_and_resize_per_second": median("decode_and_resize_per_second"),
        "decode_and_resize_ratio": ratio("decode_and_resize_per_second"),
    }


def geometries_of_encoders() -> list[Geometry]:
    """The geometries for which `least_cosines` wants pixels."""
    return [geometry for geometry, _ in _embedders()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MMVP_RAY_TEST_DATA", DATA)))
    parser.add_argument("--library", choices=["pil", "torchvision"], default="pil", help="whose resize")
    parser.add_argument("--speed-only", action="store_true", help="no pixels, cosines and odd images")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in sorted((args.data / "imagenet_sample").glob("*.tar"))]
        made = not paths
        if made:
            from benchmarks.embed import make_shards

            paths = [str(path) for path in make_shards(Path(folder), 4, 50)]
        costs: dict[str, dict[str, float]] = {}
        left_out: dict[str, str] = {}
        for name in DECODERS:
            outcome = run_apart(import_cost, name, num_threads=1)
            if outcome.result is None:
                left_out[name] = outcome.error
            else:
                costs[name] = outcome.result
        raced = run_apart(race, list(costs), paths, args.library, args.rounds, num_threads=1)
        if raced.result is None:
            raise SystemExit(raced.error)
        rows = {name: row(name, raced.result) | costs[name] for name in costs}
        if not args.speed_only:
            geometries = run_apart(geometries_of_encoders, num_threads=1).result or []
            compared = []
            for name in rows:
                shapes = [(geometry, pixels_path(folder, name, which)) for which, geometry in enumerate(geometries)]
                outcome = run_apart(compare, name, paths, shapes, num_threads=1)
                rows[name] |= outcome.result or {"error": outcome.error}
                compared += [name] if outcome.result else []
            outcome = run_apart(least_cosines, folder, compared, num_threads=None)
            for name, cosine in (outcome.result or {}).items():
                rows[name]["least_cosine"] = cosine
            if (args.data / "odd_images").is_dir():
                for name in rows:
                    outcome = run_apart(odd, name, str(args.data / "odd_images"), num_threads=1)
                    rows[name] |= outcome.result or {"odd_error": outcome.error}
    figures = {
        "machine": machine(),
        "pictures": "made" if made else "imagenet_sample",
        "library": args.library,
        "rounds": args.rounds,
        "rows": list(rows.values()),
        "left_out": left_out,
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
