"""python:module:factory: the example of docs/encoders.md, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmvp_ray.encoders import PatchEncoder, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

DOCUMENT = Path(__file__).parents[2] / "docs" / "encoders.md"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # What is added to it goes with the test.
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_encoders.py"
    sys.modules.pop("my_encoders", None)


def test_the_documented_example_runs(module: Path) -> None:
    import torch
    from safetensors.torch import save_file

    blocks = re.findall(r"```python\n(# my_encoders\.py\n.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    module.write_text(blocks[0])
    torch.manual_seed(0)
    save_file({"weight": torch.randn(16, 3 * 8 * 8)}, module.parent / "patches.safetensors")

    spec = resolve_encoder("python:my_encoders:patches", device="cpu")
    encoder = load_encoder(spec, device="cpu")
    pixels_BCHW = torch.randint(0, 256, (5, 3, *spec.geometry.shape_px), dtype=torch.uint8)
    emb_BD = encoder.embed(pixels_BCHW)
    assert (emb_BD.shape, emb_BD.dtype) == ((5, spec.dim), torch.float32)
    assert isinstance(encoder, PatchEncoder)
    assert not isinstance(encoder, TextEncoder)
    assert encoder.patch_tokens(pixels_BCHW, -1).shape[0] == 5
    assert torch.allclose(encoder.patch_tokens(pixels_BCHW, -1).mean(1), emb_BD, atol=1e-5)

    save_file({"weight": torch.randn(16, 3 * 8 * 8)}, module.parent / "patches.safetensors")
    with pytest.raises(DataError, match="differs in weights_sha256"):
        load_encoder(spec, device="cpu")


@pytest.mark.parametrize("returned", ["torch.zeros(len(pixels_BCHW), 4)", "torch.zeros(1, 3)", "pixels_BCHW.numpy()"])
def test_embeddings_of_another_shape_are_refused(module: Path, returned: str) -> None:
    import torch

    source = f"""
import torch
from mmvp_ray.images.geometry import Geometry

class Wrong:
    geometry = Geometry(library="pil", resize="squash", resize_px=(8, 8), interpolation="bicubic", crop_px=None)
    dim = 3
    def embed(self, pixels_BCHW):
        return {returned}

def wrong(*, device, dtype):
    return Wrong()
"""
    module.write_text(source)
    encoder: Any = load_encoder(resolve_encoder("python:my_encoders:wrong", device="cpu"), device="cpu")
    with pytest.raises(DataError, match=r"expected embed to give a tensor of shape \(2, 3\)"):
        encoder.embed(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
