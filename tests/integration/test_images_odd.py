"""Every odd image of the shared data is decoded, or rejected with a reason from the list."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.isolated import decode_isolated
from mmvp_ray.images.reasons import Rejected, RejectReason
from mmvp_ray.images.sniff import SUPPORTED, sniff

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def odd_images() -> Path:
    data = os.environ.get("MMVP_RAY_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(data) / "odd_images"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no odd images at {folder}; name the shared data folder in MMVP_RAY_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def manifest(odd_images: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((odd_images / "MANIFEST.json").read_text())
    assert len(entries) >= 200
    return entries


def shown_size_px(entry: dict[str, Any]) -> list[int]:
    """The manifest's size is as stored, but for TIFF, which Pillow turns while it loads."""
    turned = entry["exif_orientation"] >= 5 and not entry["file"].endswith((".tif", ".tiff"))
    return entry["size"][::-1] if turned else entry["size"]


def test_every_odd_image_is_decoded_or_rejected_for_a_listed_reason(
    odd_images: Path, manifest: list[dict[str, Any]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = {entry["file"]: decode((odd_images / entry["file"]).read_bytes()) for entry in manifest}
    for entry in manifest:
        result = results[entry["file"]]
        if isinstance(result, Decoded):
            assert result.image_HWC.shape == (result.height_px, result.width_px, 3), entry
        else:
            assert isinstance(result.reason, RejectReason), entry
            assert result.detail.isprintable(), entry
            assert result.reason is not RejectReason.EMPTY, entry


def test_what_pillow_calls_good_is_decoded_to_the_size_that_a_viewer_shows(
    odd_images: Path, manifest: list[dict[str, Any]]
) -> None:
    num_decoded = 0
    for entry in manifest:
        data = (odd_images / entry["file"]).read_bytes()
        if entry["pillow"] != "ok" or sniff(data) not in SUPPORTED:
            continue
        result = decode(data)
        assert isinstance(result, Decoded), (entry, result)
        assert [result.width_px, result.height_px] == shown_size_px(entry), entry
        num_decoded += 1
    assert num_decoded >= 170


def test_bombs_are_rejected_for_their_size(odd_images: Path, manifest: list[dict[str, Any]]) -> None:
    bombs = [entry["file"] for entry in manifest if entry["pillow"].startswith("DecompressionBomb")]
    assert bombs
    for name in bombs:
        result = decode((odd_images / name).read_bytes())
        expected = "format_not_supported" if name.endswith(".ico") else "too_many_pixels"
        assert isinstance(result, Rejected), name
        assert result.reason == expected, name


def test_a_child_process_says_the_same_and_keeps_what_c_libraries_print(
    odd_images: Path, manifest: list[dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    items = [(odd_images / entry["file"]).read_bytes() for entry in manifest]
    isolated = decode_isolated(items, timeout_seconds=60)
    assert capfd.readouterr() == ("", "")
    for entry, data, result in zip(manifest, items, isolated, strict=True):
        here = decode(data)
        if isinstance(here, Rejected):
            assert result == here, entry
        else:
            assert isinstance(result, Decoded), (entry, result)
            assert result.image_HWC.tobytes() == here.image_HWC.tobytes(), entry
