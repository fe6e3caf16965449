"""Encoder names, devices and dtypes: what is refused, and what the message says."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.encoders.backends import BACKENDS, choose_dtype
from mmvp_ray.encoders.block_tokens import layer_index
from mmvp_ray.encoders.locations import local_directory, looks_like_path, near_matches, split_revision
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry

if TYPE_CHECKING:
    from pathlib import Path


def test_importing_encoders_imports_no_heavy_library() -> None:
    heavy = "'torch', 'torchvision', 'transformers', 'open_clip', 'timm', 'ray', 'huggingface_hub'"
    code = f"import sys, mmvp_ray.encoders; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("openclip:ViT-L-14/openai", "unknown backend 'openclip'"),
        ("ViT-L-14/openai", "no 'backend:' prefix"),
        ("open_clip:", "no model"),
        ("", "no 'backend:' prefix"),
    ],
)
def test_malformed_names_list_the_backends_and_examples(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_encoder(name, device="cpu")
    message = str(caught.value)
    assert told in message
    assert all(backend in message for backend in BACKENDS)
    assert "open_clip:ViT-L-14/openai" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("dtype", "device", "chosen"),
    [
        (None, "cpu", "float32"),
        (None, "cuda", "float16"),
        (None, "cuda:3", "float16"),
        ("bfloat16", "cpu", "bfloat16"),
        ("bfloat16", "cuda", "bfloat16"),
        ("float32", "cuda", "float32"),
    ],
)
def test_dtype_follows_the_device_unless_it_is_said(dtype: str | None, device: str, chosen: str) -> None:
    assert choose_dtype(dtype, device=device, name="x") == chosen


@pytest.mark.parametrize(
    ("dtype", "device", "told"),
    [
        ("float16", "cpu", "use float32 or bfloat16"),
        ("fp16", "cuda", "float16, float32, bfloat16"),
        (None, "gpu", "cpu, cuda or cuda:N"),
        (None, "cuda:x", "cpu, cuda or cuda:N"),
        (None, "cuda:", "cpu, cuda or cuda:N"),
        (None, "cpu:0", "cpu, cuda or cuda:N"),
    ],
)
def test_unusable_dtypes_and_devices_are_refused(dtype: str | None, device: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_encoder("open_clip:ViT-L-14/openai", device=device, dtype=dtype)


def test_a_spec_of_an_unknown_backend_is_refused_on_the_worker() -> None:
    geometry = Geometry(library="pil", resize="squash", resize_px=(8, 8), interpolation="bicubic", crop_px=None)
    spec = EncoderSpec(
        name="x:y",
        backend="x",
        source="y",
        architecture="y",
        weights_sha256="0" * 64,
        geometry=geometry,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        feature="f",
        dtype="float32",
        dim=4,
        family="vision",
        num_parameters=0,
    )
    with pytest.raises(DataError, match="names backend 'x'; known: hf, "):
        load_encoder(spec, device="cpu")


def test_near_matches_ignore_case_and_fall_back_to_the_first_names() -> None:
    assert near_matches("vit-l14", ["RN50", "ViT-L-14", "ViT-B-32"]).startswith("ViT-L-14")
    assert near_matches("zzz", ["b", "a"]) == "a, b"
    assert near_matches("zzz", []) == ""


def test_revisions_are_split_off() -> None:
    assert split_revision("facebook/dinov2-large@abc") == ("facebook/dinov2-large", "abc")
    assert split_revision("facebook/dinov2-large") == ("facebook/dinov2-large", None)


@pytest.mark.parametrize(
    ("text", "is_path"),
    [("/a", True), ("./a", True), ("../a", True), ("~/a", True), (".", True), ("owner/name", False), (".a", False)],
)
def test_looks_like_path(text: str, is_path: bool) -> None:
    assert looks_like_path(text) is is_path


def test_local_directory_is_absolute_or_none_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert local_directory("owner/name", name="n") == (tmp_path / "owner" / "name").resolve()
    assert local_directory("owner/other", name="n") is None
    with pytest.raises(ConfigError, match="found a file"):
        local_directory("./file", name="n")
    with pytest.raises(ConfigError, match="found nothing"):
        local_directory(str(tmp_path / "missing"), name="n")


def test_layers_count_from_the_input_of_the_first_block() -> None:
    assert [layer_index(layer, num_blocks=3, name="n") for layer in (0, 1, 3, -1, -2, -4)] == [0, 1, 3, 3, 2, 0]
    for layer in (4, -5):
        with pytest.raises(ConfigError, match="expected -4 to 3"):
            layer_index(layer, num_blocks=3, name="n")
