"""What a user gets for bad input: one line on standard error, a non-zero exit, nothing that a reader would take for a finished run."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmvp_ray import MineConfig, mine_pairs, open_run
from mmvp_ray.cluster import Session
from mmvp_ray.errors import ConfigError, DataError, MmvpError, ResourceError
from mmvp_ray.pipeline import Progress, prepare
from tests.integration.docs_place import run_job

REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration]


@pytest.fixture
def photos(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(make_jpeg(number))
    return folder


def command(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs/mine.py"), *flags], capture_output=True, text=True, timeout=120
    )


def refused(config: MineConfig) -> MmvpError:
    with pytest.raises(MmvpError) as caught, Session() as session:
        prepare(config, session, Progress(stream=None))
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_command_prints_one_line_and_fails(tmp_path: Path, photos: Path) -> None:
    result = command("--corpus", f"p={photos}", "--near", "open_klip:ViT-L-14/openai", "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ConfigError: ")
    assert "open_clip" in lines[0]
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_unknown_flag_is_named(tmp_path: Path) -> None:
    result = command("--near-abov", "0.9", "--out", str(tmp_path))
    assert result.returncode != 0
    assert "--near-abov" in result.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--near-above", "1.5"], "expected a cosine between -1 and 1, found 1.5 in --near-above"),
        (["--far-quantile", "7"], "expected a quantile between 0 and 1, found 7.0 in --far-quantile"),
        (["--max-reject-fraction", "2"], "expected a fraction between 0 and 1, found 2.0 in --max-reject-fraction"),
        (["--select", "0"], "expected at least 1, found 0 in --select"),
        (["--corpus", "nameless"], "expected NAME=PATH_OR_URL"),
        (["--far", "miniature:clip"], "expected two different encoders"),
        (["--config", "no/such.yaml"], "expected a YAML file at no/such.yaml, found none"),
    ],
)
def test_values_out_of_range(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: how an error becomes the job's line and code is the same for all of them."""
    with pytest.raises(MmvpError, match=re.escape(expected)) as caught:
        run_job("mine", flags)
    assert "\n" not in str(caught.value)
    assert "".join(capsys.readouterr()) == ""


def test_a_misspelt_yaml_key_names_the_closest(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("rule:\n  near_abov: 0.9\n")
    with pytest.raises(ConfigError, match=r"did you mean near_above\?"):
        run_job("mine", ["--config", str(tmp_path / "bad.yaml")])


def test_a_missing_path(tmp_path: Path) -> None:
    error = refused(MineConfig(corpus=(f"p={tmp_path}/nothing",), out=str(tmp_path / "out"), device="cpu"))
    assert isinstance(error, ConfigError)
    assert re.match(r"expected files at .*/nothing, found none", str(error))


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refused(MineConfig(corpus=(f"p={tmp_path}/empty",), out=str(tmp_path / "out"), device="cpu"))
    assert isinstance(error, ConfigError)


@pytest.mark.usefixtures("ray_session")
def test_a_corpus_without_one_good_image_ends_in_one_line(tmp_path: Path, make_tar: Callable[..., None]) -> None:
    make_tar(tmp_path / "in/empty.tar", [])
    mined = mine_pairs(
        MineConfig(corpus=(f"p={tmp_path}/in",), out=str(tmp_path / "out"), device="cpu"),
        progress=Progress(stream=None),
    )
    assert mined.manifest["counts"]["read"] == 0
    assert mined.pairs().num_rows == 0


def test_a_store_of_another_schema_version(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text(json.dumps({"schema_version": 99}))
    error = refused(
        MineConfig(corpus=(f"p={photos}",), out=str(tmp_path / "out"), store=str(tmp_path / "store"), device="cpu")
    )
    assert isinstance(error, DataError)
    assert "schema version 1, found version 99" in str(error)


def test_a_gpu_that_is_not_there(tmp_path: Path, photos: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    error = refused(MineConfig(corpus=(f"p={photos}",), out=str(tmp_path / "out"), device="cuda"))
    assert isinstance(error, ResourceError)
    assert "expected a GPU for --device cuda, found none" in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path, photos: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert isinstance(refused(MineConfig(corpus=(f"p={photos}",), out=str(locked / "out"), device="cpu")), ConfigError)


def test_an_out_that_is_a_file(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "out").write_text("a file")
    error = refused(MineConfig(corpus=(f"p={photos}",), out=str(tmp_path / "out"), device="cpu"))
    assert isinstance(error, ConfigError)
    assert "found a file" in str(error)


def test_a_full_disk(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = refused(MineConfig(corpus=(f"p={photos}",), out=str(tmp_path / "out"), device="cpu"))
    assert isinstance(error, ResourceError)
    assert "no space left" in str(error)
    monkeypatch.undo()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_store_larger_than_the_disk(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1))  # type: ignore[attr-defined]
    error = refused(MineConfig(corpus=(f"p={photos}",), out=str(tmp_path / "out"), device="cpu"))
    assert isinstance(error, ResourceError)
    assert "GB free for the store" in str(error)


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a finished run"):
        open_run(str(tmp_path))


def test_plan_does_nothing_but_check(tmp_path: Path, photos: Path) -> None:
    result = command("--corpus", f"p={photos}", "--out", str(tmp_path / "out"), "--device", "cpu", "--plan")
    assert result.returncode == 0
    assert "work: 1 piece, 3 images, 6 vectors, " in result.stdout
    assert not (tmp_path / "out").exists()
