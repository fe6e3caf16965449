"""Benchmarks in a bucket: read, written and exported as on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmvp_ray import storage
from mmvp_ray.benchmark import FORMS, export_benchmark, open_benchmark
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm

pytestmark = [pytest.mark.integration]


def test_layouts_in_a_bucket_equal_those_on_disk(s3_bucket: str, tmp_path: Path) -> None:
    here, there = make_mmvp(tmp_path / "m", num_pairs=4), make_mmvp(f"{s3_bucket}/bench/m", num_pairs=4)
    assert there.fingerprint == here.fingerprint
    assert there.items[0].image_uri == f"{s3_bucket}/bench/m/MMVP Images/1.jpg"
    assert storage.read_bytes(there.items[0].image_uri) == Path(here.items[0].image_uri).read_bytes()
    here, there = make_mmvp_vlm(tmp_path / "v"), make_mmvp_vlm(f"{s3_bucket}/bench/v/")
    assert there.fingerprint == here.fingerprint
    assert there.statements[-1].image_uri == f"{s3_bucket}/bench/v/MLLM_VLM Images/Camera Perspective/36.jpg"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "mmvp_vlm"])
def test_every_form_is_the_same_in_a_bucket(s3_bucket: str, tmp_path: Path, form: str) -> None:
    made = make_mmvp(tmp_path / "m", num_pairs=2)
    there = f"{s3_bucket}/forms/{form}"
    export_benchmark(made, str(tmp_path / "out"), form=form)
    export_benchmark(made, there, form=form)
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    found = {info.uri.removeprefix(f"{there}/"): info.uri for info in storage.find_files(there)}
    assert set(found) == set(files)
    assert all(storage.read_bytes(found[name]) == files[name].read_bytes() for name in files)
    if form in ("table", "mmvp"):
        assert open_benchmark(there).fingerprint == made.fingerprint
    with pytest.raises(ConfigError, match="remove it or name another"):
        export_benchmark(made, there, form=form)


def test_what_is_missing_in_a_bucket_is_said(s3_bucket: str) -> None:
    with pytest.raises(ConfigError, match="found none among: nothing"):
        open_benchmark(f"{s3_bucket}/nowhere")
    made = make_mmvp(f"{s3_bucket}/holes", num_pairs=2)
    storage.remove(made.items[2].image_uri)
    with pytest.raises(DataError, match=r"image 3\.jpg.*line 4"):
        open_benchmark(made.url)
