"""jobs/ingest.py: one help for all, one for each command, nothing heavy before there is work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "img2dataset", "wandb", "cv2", "matplotlib", "torchvision"}


def job(*args: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys, runpy; sys.argv = ['jobs/ingest.py', *{args!r}]\n"
        "try: runpy.run_path('jobs/ingest.py', run_name='__main__')\n"
        f"finally: assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)


def test_help_lists_the_commands() -> None:
    for args in ((), ("--help",)):
        found = job(*args)
        assert found.returncode == 0, found.stderr
        assert all(f"\n  {name} " in found.stdout for name in ("laion", "imagenet", "score"))


def test_help_of_laion_explains_every_flag() -> None:
    found = job("laion", "--help")
    assert found.returncode == 0, found.stderr
    flags = ["--metadata", "--out", "--min-aesthetic", "--max-punsafe", "--deny-domain-file", "--license", "--contact"]
    flags += ["--connections-per-host", "--max-bytes", "--allow-private-addresses", "--opt-out", "--resize", "--plan"]
    assert all(flag in found.stdout for flag in flags)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("cifar",), "ConfigError: expected one of laion, imagenet, score as the first word, found 'cifar'"),
        (("laion",), "ConfigError: expected --metadata"),
        (
            ("laion", "--metadata", "x", "--out", "y", "--max-bytes", "99999999999"),
            "ConfigError: expected at most 67108864",
        ),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], line: str) -> None:
    found = job(*args)
    assert found.returncode == 1
    assert found.stderr.startswith(line) and found.stderr.count("\n") == 1


def test_the_job_can_be_executed() -> None:
    path = REPOSITORY / "jobs/ingest.py"
    assert path.stat().st_mode & 0o111
    assert path.read_text().startswith("#!/usr/bin/env python\n")
