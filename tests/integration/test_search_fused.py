"""The fused join, where no GPU is: Triton's interpreter finds the pairs of the plain join, and its compiler takes the kernel for GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, folder: Path, **environment: str) -> list[str]:
    """The lines that a module prints; Triton keeps what it compiles in the folder."""
    done = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_interpreted_kernel_finds_the_pairs_of_the_plain_join(tmp_path: Path) -> None:
    num_pairs = [int(line) for line in run("tests.integration.fused_join", tmp_path, TRITON_INTERPRET="1")]
    assert len(num_pairs) == 5 and min(num_pairs) > 0 and max(num_pairs) > 1000


def test_what_a_gpu_is_to_measure_runs_and_its_figures_are_shown(tmp_path: Path) -> None:
    from benchmarks.sections.models import gpu_tables

    *said, last = run("tests.integration.fused_measure", tmp_path, TRITON_INTERPRET="1")
    found = json.loads(last)
    assert [one["num_pairs"] for one in found["sizes"]] == [350, 2100]
    assert [line.split(",")[0] for line in said] == ["fused join 700 x 64"] * 2
    assert found["least_ratio"] == min(one["plain_seconds"] / one["fused_seconds"] for one in found["sizes"]) > 0
    assert all(0 < one["share_again"] <= 1 for one in found["sizes"])
    shown = gpu_tables({"fused": found})
    assert any(line.startswith("| 700, 7 |") for line in shown)


def test_the_kernel_compiles_for_gpus_to_their_matrix_instructions(tmp_path: Path) -> None:
    found = [line.split() for line in run("tests.integration.fused_compile", tmp_path)]
    assert len(found) == 5
    for compute, size, instruction, shared_bytes in found:
        assert instruction == {"80": "mma.sync", "90": "wgmma"}[compute]
        # What a program may have on an A100 and an H100, and on any GPU without asking for more.
        assert int(shared_bytes) <= {"80 large": 163, "90 large": 227}.get(f"{compute} {size}", 48) * 1024
