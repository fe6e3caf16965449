"""python:module:factory: how a user's own encoder is described, and what is said when it cannot be."""

from __future__ import annotations

import hashlib
import re
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = """
from mmvp_ray.images.geometry import Geometry

class Mean:
    geometry = Geometry(library="pil", resize="squash", resize_px=(8, 8), interpolation="bicubic", crop_px=None)
    dim = 3
    {extra}
    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
    def embed(self, pixels_BCHW):
        return pixels_BCHW.float().mean(dim=(2, 3))

def mean(*, device, dtype):
    return Mean(device, dtype)
{more}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module my_encoder.py that can be imported; forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "my_encoder.py"
    sys.modules.pop("my_encoder", None)


def write(path: Path, *, extra: str = "", more: str = "") -> None:
    path.write_text(SOURCE.format(extra=extra, more=textwrap.dedent(more)))
    sys.modules.pop("my_encoder", None)


def test_the_source_file_stands_for_weights_that_are_not_named(plugin: Path) -> None:
    write(plugin)
    spec = resolve_encoder("python:my_encoder:mean", device="cpu")
    assert spec.weights_sha256 == hashlib.sha256(plugin.read_bytes()).hexdigest()
    assert (spec.dim, spec.family, spec.dtype, spec.source) == (3, "vision", "float32", "my_encoder:mean")
    assert spec.slug.startswith("mean-")
    encoder = load_encoder(spec, device="cpu")
    assert encoder.spec == spec


def test_a_changed_module_is_another_encoder_and_is_refused_on_the_worker(plugin: Path) -> None:
    write(plugin)
    spec = resolve_encoder("python:my_encoder:mean", device="cpu")
    write(plugin, extra="note = 1")
    assert resolve_encoder("python:my_encoder:mean", device="cpu").fingerprint != spec.fingerprint
    with pytest.raises(DataError, match="differs in weights_sha256"):
        load_encoder(spec, device="cpu")


def test_stated_weights_and_architecture_win_over_the_source(plugin: Path) -> None:
    stated = f'weights_sha256 = "{"12" * 32}"; architecture = "mean of colours"; feature = "mean"; num_parameters = 7'
    write(plugin, extra=stated)
    spec = resolve_encoder("python:my_encoder:mean", device="cpu")
    write(plugin, extra=stated + "; note = 1")
    again = resolve_encoder("python:my_encoder:mean", device="cpu")
    assert again.fingerprint == spec.fingerprint
    assert (spec.weights_sha256, spec.feature, spec.num_parameters) == ("12" * 32, "mean", 7)
    assert "mean of colours" in spec.architecture


def test_describe_spares_the_driver_the_model(plugin: Path) -> None:
    more = """
    def heavy(*, device, dtype):
        if device == "cpu":
            raise RuntimeError("built on the driver")
        return Mean(device, dtype)
    class Description:
        geometry, dim, weights_sha256 = Mean.geometry, 3, "34" * 32
    heavy.describe = lambda *, dtype: Description
    """
    write(plugin, more=more)
    spec = resolve_encoder("python:my_encoder:heavy", device="cuda")
    assert (spec.dtype, spec.weights_sha256) == ("float16", "34" * 32)


@pytest.mark.parametrize(
    ("name", "extra", "told"),
    [
        ("python:my_encoder", "", "expected python:package.module:factory, found no factory"),
        ("python::mean", "", "found no module"),
        ("python:my_encoder:missing", "", "expected a callable 'missing' in my_encoder, found none; it has"),
        ("python:no_such_module_here:mean", "", "found ModuleNotFoundError"),
        ("python:my_encoder:mean", "dim = 'three'", "dim (an int), found Geometry and str"),
        ("python:my_encoder:mean", "geometry = None", "geometry (a Geometry)"),
        ("python:my_encoder:mean", "family = 'audio'", "clip, vision"),
        ("python:my_encoder:mean", "std = (1, 1)", "std"),
        ("python:my_encoder:mean", "raise ValueError('broken')", "found ValueError (broken)"),
        ("python:my_encoder:mean", "weights_sha256 = 'abc'", "64 hex digits"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said_in_one_line(plugin: Path, name: str, extra: str, told: str) -> None:
    write(plugin, extra=extra)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        resolve_encoder(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_factory_that_raises_or_has_no_embed_is_a_config_error(plugin: Path) -> None:
    more = """
    def raising(*, device, dtype):
        raise OSError("no weights here")
    def deaf(*, device, dtype):
        found = Mean(device, dtype)
        found.embed = None
        return found
    """
    write(plugin, more=more)
    with pytest.raises(ConfigError, match=r"factory\(device=\.\.\., dtype=\.\.\.\) raised OSError \(no weights here\)"):
        resolve_encoder("python:my_encoder:raising", device="cpu")
    spec = resolve_encoder("python:my_encoder:deaf", device="cpu")
    with pytest.raises(ConfigError, match="to have embed"):
        load_encoder(spec, device="cpu")
