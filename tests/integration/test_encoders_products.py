"""Float32 encoders with products in bfloat16: only where the hardware has them and vectors stay, and never beyond the one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmvp_ray.encoders import EncoderSpec, load_encoder, load_for_embedding, products, resolve_encoder
from mmvp_ray.encoders.protocol import TextEncoder
from tests.integration.encoders_small_models import embed_pictures, save_hf, save_open_clip, worst_cosine

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    directory = save_open_clip(tmp_path_factory.mktemp("open_clip") / "model")
    return resolve_encoder(f"open_clip:{directory}", device="cpu")


@pytest.fixture(autouse=True)
def any_size_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(products, "MIN_PARAMETERS", 1)


def precisions() -> list[str]:
    library: Any = torch.backends.mkldnn
    return [library.matmul.fp32_precision, library.conv.fp32_precision]


class Pretender:
    """Gives other vectors where factors are rounded: turned so far that the cosine is `cosine`."""

    def __init__(self, spec: EncoderSpec, cosine: float) -> None:
        self.spec = spec
        self.cosine = cosine
        self.calls: list[list[str]] = []

    def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        self.calls.append(precisions())
        cosine = self.cosine if precisions() == ["bf16", "bf16"] else 1.0
        return torch.tensor([[cosine, (1.0 - cosine**2) ** 0.5]]).repeat(len(pixels_BCHW), 1)


def test_vectors_of_a_real_model_stay_within_a_cosine_of_9999(spec: EncoderSpec) -> None:
    before = precisions()
    rounded = load_for_embedding(spec, device="cpu")

    assert isinstance(rounded, products.RoundedProducts)
    assert worst_cosine(embed_pictures(rounded), embed_pictures(load_encoder(spec, device="cpu"))) >= 0.9999
    assert precisions() == before


@pytest.mark.parametrize(("cosine", "is_rounded"), [(0.99996, True), (0.9999, False), (float("nan"), False)])
def test_an_encoder_whose_vectors_move_keeps_float32(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, *, cosine: float, is_rounded: bool
) -> None:
    pretender = Pretender(spec, cosine)
    monkeypatch.setattr(products, "load_encoder", lambda spec, **_: pretender)

    found = load_for_embedding(spec, device="cpu")

    assert isinstance(found, products.RoundedProducts) == is_rounded
    assert (found is pretender) == (not is_rounded)
    assert ["bf16", "bf16"] in pretender.calls, "asked with rounded factors"


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"dtype": "bfloat16"}, {}),
        ({"backend": "python"}, {}),
        ({"num_parameters": 0}, {}),
        ({}, {"cpu_products": "float32"}),
        ({}, {"device": "cuda"}),
    ],
    ids=str,
)
def test_who_is_not_asked(
    spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], options: dict[str, str]
) -> None:
    other = replace(spec, **change)
    pretender = Pretender(other, 1.0)
    monkeypatch.setattr(products, "load_encoder", lambda spec, **_: pretender)

    assert load_for_embedding(other, **{"device": "cpu", **options}) is pretender
    assert pretender.calls == []


def test_a_cpu_without_the_hardware_is_not_asked(spec: EncoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "multiplies_bf16", lambda: False)

    assert not isinstance(load_for_embedding(spec, device="cpu"), products.RoundedProducts)


def test_precision_is_put_back_after_an_error(spec: EncoderSpec) -> None:
    class Broken(Pretender):
        def embed(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    before = precisions()
    with pytest.raises(RuntimeError, match="broken"):
        products.RoundedProducts(Broken(spec, 1.0)).embed(torch.zeros(1))
    assert precisions() == before


def test_probes_are_pictures_and_the_same_everywhere() -> None:
    pixels_BCHW = products.probe_pixels(48, 64)

    assert pixels_BCHW.shape == (products.NUM_PROBES, 3, 48, 64) and pixels_BCHW.dtype == np.uint8
    assert np.array_equal(pixels_BCHW, products.probe_pixels(48, 64))
    assert (pixels_BCHW.std(axis=(2, 3)) > 30).all()
    # Neighbours are alike, as in photographs.
    rows = pixels_BCHW.reshape(-1, 64).astype(float)
    assert np.corrcoef(rows[:, :-1].ravel(), rows[:, 1:].ravel())[0, 1] > 0.5


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_the_image_tower_alone_embeds_the_same_and_outlives_its_file(tmp_path: Path, kind: str) -> None:
    backend = "open_clip" if kind == "open_clip" else "hf"
    directory = save_open_clip(tmp_path / "model") if kind == "open_clip" else save_hf(tmp_path / "model", kind)
    spec = resolve_encoder(f"{backend}:{directory}", device="cpu")
    whole = load_encoder(spec, device="cpu")
    alone = load_encoder(spec, device="cpu", images_only=True)
    assert isinstance(whole, TextEncoder)
    for file in directory.iterdir():
        if file.suffix in (".safetensors", ".bin", ".pt"):
            # In place, as a copy over it would: were the weights the file's pages, they would change or end the process.
            file.write_bytes(b"\0" * file.stat().st_size)

    assert torch.equal(embed_pictures(alone), embed_pictures(whole))
    sizes = {name: tensor.numel() for name, tensor in whole._model.named_parameters()}  # type: ignore[attr-defined]
    of_text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_")
    kept = sum(size for name, size in sizes.items() if not name.startswith(of_text))
    assert sum(tensor.numel() for tensor in alone._model.parameters()) == kept < sum(sizes.values())  # type: ignore[attr-defined]
