"""CLIP ViT-L/14 and DINOv2-L/14 on a device: vectors against transformers' own, then images a second."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_bench import Bench, CheckError, Found, percent

if TYPE_CHECKING:
    import torch

# Shapes: B images of a batch, C = 3, H x W pixels, D numbers of a vector.

LEAST_COSINE = {"float16": 0.9999, "float32": 0.99999}
GOAL_SHARE = 0.6
BATCHES = {"full": (64, 128, 256, 512), "smoke": (16, 32)}
"""Each holds the pictures that are checked."""
NUM_CHECKED = 16
VISION = {
    "full": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "smoke": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
TEXT = {
    "full": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "smoke": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 99,
    },
}
SIDES_PX = {"full": (224, 518), "smoke": (56, 112)}
"""Of the images, and of DINOv2's table of positions, which is interpolated."""
PROCESSORS = {
    "clip": ("CLIPImageProcessor", 1.0, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "dinov2": ("BitImageProcessor", 256 / 224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""As published: class, shorter side over the crop's, mean and standard deviation."""


@dataclass(slots=True)
class Towers:
    """Both encoders as mmvp_ray.encoders loads them, and the folders that they lie in."""

    encoders: dict[str, Any] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    _references: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """That both run in."""
        return str(next(iter(self.encoders.values())).spec.dtype)

    @property
    def side_px(self) -> int:
        """Of their images."""
        return int(next(iter(self.encoders.values())).spec.geometry.shape_px[0])

    def check(self, name: str, pixels_BCHW: torch.Tensor, bench: Bench) -> float:
        """Least cosine between an encoder's vectors of pixels that begin with checked_pixels and transformers' own.

        Raises:
            CheckError: as check_vectors.
        """
        if name not in self._references:
            self._references[name] = reference(self.folders[name], name, checked_pixels(self.side_px), bench.device)
        found_BD = self.encoders[name].embed(pixels_BCHW)[:NUM_CHECKED]
        return check_vectors(name, found_BD, self._references[name], LEAST_COSINE[self.dtype])


def open_towers(root: Path, bench: Bench) -> Towers:
    """Write both models with random weights as save_pretrained does, and load them by the encoders' own way."""
    from mmvp_ray.encoders import load_encoder, resolve_encoder

    towers = Towers()
    for name in PROCESSORS:
        towers.folders[name] = save_tower(root / name, name, bench)
        spec = resolve_encoder(f"hf:{towers.folders[name]}", device=bench.device)
        towers.encoders[name] = load_encoder(spec, device=bench.device)
    return towers


def save_tower(folder: Path, name: str, bench: Bench) -> Path:
    """One model and its preprocessor_config.json, in float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    scale, (side_px, positions_px) = bench.scale, SIDES_PX[bench.scale]
    with torch.device(bench.device):
        model: Any
        if name == "clip":
            vision = VISION[scale] | {"image_size": side_px, "patch_size": 14}
            config = transformers.CLIPConfig(
                vision_config=vision, text_config=TEXT[scale], projection_dim=TEXT[scale]["hidden_size"]
            )
            model = transformers.CLIPModel(config)
        else:
            sizes = {key: value for key, value in VISION[scale].items() if key != "intermediate_size"}
            ratio = VISION[scale]["intermediate_size"] // VISION[scale]["hidden_size"]
            config = transformers.Dinov2Config(**sizes, mlp_ratio=ratio, image_size=positions_px, patch_size=14)
            model = transformers.Dinov2Model(config)
        with torch.no_grad():
            # Zeros of biases and ones of norms would hide a mix-up.
            for value in model.parameters():
                value.add_(0.02 * torch.randn_like(value))
    model.save_pretrained(folder)
    kind, larger, mean, std = PROCESSORS[name]
    settings = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": round(side_px * larger)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side_px, "width": side_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def reference(folder: Path, name: str, pixels_BCHW: torch.Tensor, device: str) -> torch.Tensor:
    """Vectors by transformers alone: float32, plain attention, pixels normalised in float64."""
    import torch
    import transformers

    kind: Any = transformers.CLIPModel if name == "clip" else transformers.Dinov2Model
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in PROCESSORS[name][2:])
    values_BCHW = ((pixels_BCHW.double() / 255 - mean) / std).float().to(device)
    with torch.inference_mode():
        found = (
            model.get_image_features(pixel_values=values_BCHW) if name == "clip" else model(pixel_values=values_BCHW)
        )
    emb_BD: torch.Tensor = found.pooler_output.cpu()
    return emb_BD


def check_vectors(name: str, found_BD: torch.Tensor, expected_BD: torch.Tensor, least: float) -> float:
    """The least cosine between rows of equal index.

    Raises:
        CheckError: it is too small or no number, or some vector is nearer to another image's.
    """
    import torch

    found_BD, expected_BD = (torch.nn.functional.normalize(emb_BD.double().cpu()) for emb_BD in (found_BD, expected_BD))
    cos_BB = found_BD @ expected_BD.T
    least_found = float(cos_BB.diagonal().min())
    # Not so for NaN either.
    if not least_found >= least:
        raise CheckError(f"{name}: expected cosines of at least {least} to the reference, found {least_found:.6f}")
    # Random towers give all images about the same direction: a cosine alone would not see one image taken for another.
    strangers = int((cos_BB.argmax(dim=1) != torch.arange(len(cos_BB))).sum())
    if strangers:
        raise CheckError(
            f"{name}: expected each vector nearest to its own image's, found {strangers} of {len(cos_BB)} nearer to another's"
        )
    return least_found


def smooth_pixels(count: int, side_px: int) -> torch.Tensor:
    """Smooth pictures with noise, uint8, (count, 3, side, side)."""
    import torch

    rng = np.random.default_rng(5)
    across = np.linspace(0, 7, side_px)
    waves = np.sin(across[:, None] * rng.uniform(1, 4, (count, 3, 1, 1)) + across * rng.uniform(1, 4, (count, 3, 1, 1)))
    levels = rng.uniform(80, 170, (count, 3, 1, 1)) + 70 * waves + rng.normal(0, 12, waves.shape)
    return torch.from_numpy(np.clip(levels, 0, 255).astype(np.uint8))


def checked_pixels(side_px: int) -> torch.Tensor:
    """The pictures whose vectors are compared."""
    return smooth_pixels(NUM_CHECKED, side_px)


def measure_embed(towers: Towers, bench: Bench, found: Found) -> None:
    """Check both encoders, then measure each and both together."""
    import torch

    from mmvp_ray.pipeline.encoder_flop import flop_per_image

    checked = checked_pixels(towers.side_px)
    cosines = {name: towers.check(name, checked, bench) for name in towers.encoders}
    # The references took more than what is measured.
    bench.forget_peak_memory()
    found.add(dtype=towers.dtype, least_cosine=cosines, encoders={})
    bound = LEAST_COSINE[towers.dtype]
    print(f"embed: least cosine to float32 {min(cosines.values()):.7f} (bound {bound}), {towers.dtype}", flush=True)
    rates: dict[str, dict[int, dict[str, float]]] = {name: {} for name in towers.encoders}
    for name, encoder in towers.encoders.items():
        flop, is_counted = flop_per_image(encoder.spec)
        found["encoders"][name] = {
            "flop_per_image": flop,
            "flop_is_counted": is_counted,
            "images_per_second": rates[name],
        }
        for size in BATCHES[bench.scale]:
            rates[name][size] = _rates(encoder, pixels_of(towers, size), bench)
            found.add()
            shown = ", ".join(f"{place} {rate:,.0f}" for place, rate in rates[name][size].items())
            share = bench.share(max(rates[name][size].values()) * flop, towers.dtype)
            print(f"embed {name}, batch {size}: {shown} images/s; {percent(share)}", flush=True)
    # The batch at which both together are fastest.
    size = min(BATCHES[bench.scale], key=lambda size: sum(1 / max(one[size].values()) for one in rates.values()))
    found.add(both={"batch": size, **_both(towers, bench, pixels_of(towers, size), "as they are")})
    if bench.device == "cuda":
        found.add(peak_gpu_gib=torch.cuda.max_memory_allocated() / 2**30)


def measure_compiled(towers: Towers, bench: Bench, embed: dict[str, Any] | None, found: Found) -> None:
    """Both encoders compiled, at the batch of part embed; they stay compiled."""
    batch = batch_of(embed, bench)
    # On a small CPU inductor takes longer than all else; eager still shows that the models can be traced.
    backend = "inductor" if bench.is_full else "eager"
    found.add(batch=batch, backend=backend)
    pixels_BCHW = pixels_of(towers, batch)
    # As they are first: what is right is known before the clock starts.
    for name in towers.encoders:
        towers.check(name, pixels_BCHW, bench)
    started = time.perf_counter()
    for encoder in towers.encoders.values():
        # The encoders have no switch for it, and nothing else needs one so far.
        encoder._family.tower(encoder._model).compile(backend=backend, dynamic=False)
    # In a batch of this size: another one would be compiled anew.
    cosines = {name: towers.check(name, pixels_BCHW, bench) for name in towers.encoders}
    found.add(least_cosine=cosines, seconds_to_compile=time.perf_counter() - started)
    found.add(**_both(towers, bench, pixels_BCHW, f"compiled by {backend} in {found['seconds_to_compile']:.0f} s"))


def batch_of(embed: dict[str, Any] | None, bench: Bench) -> int:
    """Images of a batch at which part embed found both fastest; a middling one where it was left out."""
    return int(embed["both"]["batch"]) if embed else BATCHES[bench.scale][len(BATCHES[bench.scale]) // 2]


def pixels_of(towers: Towers, size: int) -> torch.Tensor:
    """A batch: the same few pictures again and again."""
    return checked_pixels(towers.side_px).repeat(-(-size // NUM_CHECKED), 1, 1, 1)[:size]


def _rates(encoder: Any, pixels_BCHW: torch.Tensor, bench: Bench) -> dict[str, float]:
    """Images a second by where the pixels lie."""
    places = {"pageable": pixels_BCHW}
    if bench.device == "cuda":
        places |= {"pinned": pixels_BCHW.pin_memory(), "on_device": pixels_BCHW.cuda()}
    return {
        place: len(pixels) / bench.seconds(lambda pixels=pixels: encoder.embed(pixels))
        for place, pixels in places.items()
    }


def _both(towers: Towers, bench: Bench, pixels_BCHW: torch.Tensor, word: str) -> dict[str, Any]:
    """Both encoders on the same pixels, from pinned memory where there is a GPU."""
    from mmvp_ray.pipeline.encoder_flop import flop_per_image

    size, pixels_BCHW = len(pixels_BCHW), pixels_BCHW.pin_memory() if bench.device == "cuda" else pixels_BCHW

    def both() -> None:
        here_BCHW = pixels_BCHW.to(bench.device, non_blocking=True)
        for encoder in towers.encoders.values():
            encoder.embed(here_BCHW)

    flop = sum(flop_per_image(encoder.spec)[0] for encoder in towers.encoders.values())
    rate = size / bench.seconds(both)
    share = bench.share(rate * flop, towers.dtype)
    print(
        f"embed both, batch {size}, {word}: {rate:,.0f} images/s; {percent(share)} (goal {GOAL_SHARE:.0%})", flush=True
    )
    return {"flop_per_image": flop, "images_per_second": rate, "share_of_peak": share}
