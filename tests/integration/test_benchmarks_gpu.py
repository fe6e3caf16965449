"""benchmarks.gpu runs where Ray, FAISS, open_clip, timm and peft are not installed, and what it checks can fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import PARTS

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
# Absent, not broken: who looks for them finds no spec, as where nobody installed them; in every process that starts.
SITE = """
import sys
from importlib.machinery import PathFinder

ABSENT = {"ray", "faiss", "open_clip", "timm", "peft"}


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)


sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def without(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python where those packages are not to be had, with one thread."""
    (folder / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def test_every_part_runs_without_ray(tmp_path: Path) -> None:
    probe = "import importlib.util as u; print([u.find_spec(n) for n in ('ray', 'faiss', 'open_clip', 'timm', 'peft')])"
    assert without(tmp_path, "-c", probe).stdout.strip() == "[None, None, None, None, None]"
    out = tmp_path / "figures.json"
    options = ["--device", "cpu", "--scale", "smoke", "--decoders", "1", "--join-vectors", "7000", "--json", str(out)]
    done = without(tmp_path, "-m", "benchmarks.gpu", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("not measured on a GPU; torch ")
    found = json.loads(out.read_text())
    assert found["failed"] == found["unfinished"] == {}
    assert all(found["seconds"][part] > 0 for part in (*PARTS, "blockwise"))
    assert found["machine"]["gpu"] is None
    positive: dict[str, Any] = {f"peak {dtype}": peak["best"] for dtype, peak in found["peak"].items()}
    embed, pipeline, join, mof = (found[part] for part in ("embed", "pipeline", "join", "mof"))
    assert set(embed["encoders"]) == set(embed["least_cosine"]) == {"clip", "dinov2"}
    assert min(embed["least_cosine"].values()) >= 0.99999
    assert min(found["compile"]["least_cosine"].values()) >= 0.99999
    for name, one in embed["encoders"].items():
        assert one["flop_is_counted"]
        positive |= {
            f"{name} {size} {place}": rate
            for size, rates in one["images_per_second"].items()
            for place, rate in rates.items()
        }
    for word, both in (("both", embed["both"]), ("compiled", found["compile"])):
        positive |= {f"{word} {key}": both[key] for key in ("images_per_second", "share_of_peak")}
    assert pipeline["num_images"] == 96
    for key in ("images_per_second", "share_of_embed", "cores_decoding", "cores_main_process", "device_busy_share"):
        positive[f"pipeline {key}"] = pipeline[key]
    assert join["checked_pairs"] > 100 and len(join["sizes"]) == 4
    for row in [*join["sizes"], found["blockwise"]]:
        positive |= {f"join {key}": row[key] for key in ("num_pairs", "flop_per_second", "share_of_peak")}
    # Three blocks: three pairs lie across them.
    assert found["blockwise"]["num_blocks"] == 3 and found["blockwise"]["num_pairs"] > 3
    assert found["blockwise"]["foretold_seconds"] > 0 and found["blockwise"]["num_joined"] == 6
    assert set(join["fit"]) == {"a", "b", "c", "error_at_largest"}
    assert mof["largest_difference"] <= mof["tolerance"]
    positive |= {f"mof {key}": mof[key] for key in ("tokens_per_second", "flop_per_second", "share_of_measured_peak")}
    assert not {name: figure for name, figure in positive.items() if not figure > 0}


def test_shares_are_of_what_was_measured_and_an_unknown_part_is_refused(tmp_path: Path) -> None:
    from benchmarks.gpu_bench import Bench, percent

    bench = Bench(device="cpu", scale="smoke", peaks={"float32": 4e12})
    assert bench.share(1e12, "float32") == 0.25 and percent(0.25) == "25.0% of the measured peak"
    assert bench.share(1e12, "float16") is None and "not known" in percent(None)
    wrong = without(tmp_path, "-m", "benchmarks.gpu", "--parts", "join,fly")
    assert wrong.returncode == 2 and "found 'join,fly'" in wrong.stderr


def test_vectors_that_are_off_swapped_or_no_numbers_are_found() -> None:
    import torch

    from benchmarks.gpu_bench import CheckError
    from benchmarks.gpu_embed import check_vectors

    # As random towers give them: all in about the same direction.
    generator = torch.Generator().manual_seed(0)
    expected = torch.ones(8, 64) + 0.01 * torch.randn(8, 64, generator=generator)
    assert check_vectors("tower", 3 * expected, expected, 0.9999) > 0.999999
    off = expected.clone()
    off[5, :32] += 0.1
    with pytest.raises(CheckError, match=r"tower: expected cosines of at least 0\.9999"):
        check_vectors("tower", off, expected, 0.9999)
    with pytest.raises(CheckError, match="found 2 of 8 nearer to another's"):
        check_vectors("tower", expected[[1, 0, 2, 3, 4, 5, 6, 7]], expected, 0.999)
    off[5] = torch.nan
    with pytest.raises(CheckError, match="found nan"):
        check_vectors("tower", off, expected, 0.9999)


def test_pairs_that_are_missing_too_many_or_off_are_found() -> None:
    from benchmarks.gpu_bench import CheckError
    from benchmarks.gpu_join import TAU, check_pairs, plant
    from mmvp_ray.search.kernel import JoinedPairs, join_block

    vectors, planted = plant(600, 64, "cpu", seed=3, every=5)
    found = join_block(vectors, None, TAU)
    check_pairs(found, vectors, None, TAU)
    assert found.rows_a_P.tolist() == planted[0].tolist() and found.rows_b_P.tolist() == planted[1].tolist()
    assert 20 < len(found.cos_P) < 120
    rows_a, rows_b, cos = found.rows_a_P, found.rows_b_P, found.cos_P
    with pytest.raises(CheckError, match="1 missing and 0 too many"):
        check_pairs(JoinedPairs(rows_a[1:], rows_b[1:], cos[1:]), vectors, None, TAU)
    more = [np.append(column, extra) for column, extra in ((rows_a, 598), (rows_b, 599), (cos, 0.99))]
    with pytest.raises(CheckError, match="0 missing and 1 too many"):
        check_pairs(JoinedPairs(*more), vectors, None, TAU)
    with pytest.raises(CheckError, match="bit by bit"):
        check_pairs(JoinedPairs(rows_a, rows_b, np.nextafter(cos, 0)), vectors, None, TAU)
    nothing = np.eye(5, 64, dtype=np.float16)
    with pytest.raises(CheckError, match="found none"):
        check_pairs(join_block(nothing, None, TAU), nothing, None, TAU)


@pytest.mark.parametrize("gigabytes_per_second", [4, 12, 50])
def test_the_fit_foretells_joins_whose_vectors_are_copied_first(gigabytes_per_second: float) -> None:
    from benchmarks.gpu_join import GOAL_ERROR, SIZES, fit, foretell

    a, b, c = 0.02, 768 * 2 / (gigabytes_per_second * 1e9), 2.4e-12
    rng = np.random.default_rng(0)
    for _ in range(50):
        noise = 1 + 0.03 * rng.standard_normal(len(SIZES["full"]))
        rows = [(num, (a + b * num + c * num**2) * off) for num, off in zip(SIZES["full"], noise, strict=True)]
        law = fit(rows[:-1])
        assert min(law) >= 0
        assert abs(foretell(law, [rows[-1][0]]) / rows[-1][1] - 1) < GOAL_ERROR
    exact = fit([(num, a + b * num + c * num**2) for num in SIZES["full"]])
    assert exact == pytest.approx((a, b, c), rel=1e-3)


def test_blocks_are_foretold_as_they_are_joined() -> None:
    from benchmarks.gpu_join import foretell

    # Three joins: each block with itself, and both; that of both computes twice what either does, and copies both.
    assert foretell((1.0, 0.0, 0.0), [10, 20]) == 3
    assert foretell((0.0, 1.0, 0.0), [10, 20]) == 10 + 20 + 30
    assert foretell((0.0, 0.0, 1.0), [10, 20]) == (10 + 20) ** 2


def test_losses_that_are_apart_no_numbers_or_do_not_fall_are_found() -> None:
    from benchmarks.gpu_bench import CheckError
    from benchmarks.gpu_mof import check_losses

    exact = [5.0, 4.5, 4.0]
    assert check_losses(exact, [5.05, 4.5, 4.0], 0.02) == pytest.approx(0.01)
    for wrong in ([5.2, 4.5, 4.0], [5.0, float("nan"), 4.0]):
        with pytest.raises(CheckError, match="within 2% of fp32's"):
            check_losses(exact, wrong, 0.02)
    with pytest.raises(CheckError, match="to fall"):
        check_losses([4.0, 4.5, 4.0], [4.0, 4.5, 4.0], 0.02)


ALTERED = """
import os, sys, time
from benchmarks import gpu, gpu_join, gpu_mof
from benchmarks.gpu_bench import CheckError

def crash(bench, found):
    found.add(sizes=[1])
    raise RuntimeError("no memory at /somewhere/of/this/machine.py")

def hang(bench, found):
    found.add(sizes=[1])
    print("hangs", flush=True)
    time.sleep(100)

def wrong(bench, found):
    gpu_mof.check_losses([5.0, 4.0], [6.0, 4.0], 0.02)

def right(bench, found):
    found.add(tokens_per_second=1.0)

{changes}
sys.argv = ["gpu", *sys.argv[1:]]
gpu.main()
"""
OPTIONS = ["--device", "cpu", "--scale", "smoke"]


def test_a_check_that_fails_ends_with_one_line_and_exit_code_1(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = without(
        tmp_path,
        "-c",
        ALTERED.format(changes="gpu_mof.measure_mof = wrong"),
        *OPTIONS,
        "--parts",
        "mof",
        "--json",
        str(out),
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith("FAILED: mof: mof: expected losses in bf16 within 2% of fp32's"), said
    assert json.loads(out.read_text())["failed"]["mof"] in said[0]


def test_a_part_that_crashes_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    script = ALTERED.format(changes="gpu_join.measure_join, gpu_mof.measure_mof = crash, right")
    done = without(tmp_path, "-c", script, *OPTIONS, "--parts", "peak,join,mof", "--json", str(out))
    assert done.returncode == 1
    found = json.loads(out.read_text())
    assert found["failed"] == {"join": "RuntimeError: no memory at machine.py"}
    assert found["unfinished"] == {"join": {"sizes": [1]}} and "join" not in found
    assert found["peak"]["float32"]["best"] > 0 and found["mof"] == {"tokens_per_second": 1.0}
    assert "in crash" in done.stderr and "FAILED: join: RuntimeError: no memory at machine.py" in done.stderr


def test_a_part_that_is_killed_before_its_first_figure_is_named(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    out.write_text('{"mof": "of an earlier call"}')
    script = ALTERED.format(changes="gpu_join.measure_join = lambda bench, found: os.kill(os.getpid(), 9)")
    done = without(tmp_path, "-c", script, *OPTIONS, "--parts", "join", "--json", str(out))
    assert done.returncode == -signal.SIGKILL
    found = json.loads(out.read_text())
    assert found["failed"] == {"join": "cut off"} and "mof" not in found


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_a_call_that_is_cut_off_leaves_what_it_measured(sign: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    script = ALTERED.format(changes="gpu_join.measure_join = hang")
    command = [sys.executable, "-c", script, *OPTIONS, "--parts", "peak,join,mof", "--json", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "hangs\n" for line in process.stdout)
        process.send_signal(sign)
    assert process.returncode == (143 if sign == signal.SIGTERM else -sign)
    found = json.loads(out.read_text())
    assert found["peak"]["float32"]["best"] > 0 and "mof" not in found
    assert found["failed"] == {"join": "cut off"} and found["unfinished"] == {"join": {"sizes": [1]}}


def test_a_container_has_the_cores_of_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_bench

    monkeypatch.setattr(os, "sched_getaffinity", lambda number: set(range(8)))
    monkeypatch.setattr(gpu_bench, "CPU_MAX", tmp_path / "cpu.max")
    assert gpu_bench.usable_cores() == 8
    for text, expected in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert gpu_bench.usable_cores() == expected
