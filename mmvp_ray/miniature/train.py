"""Train a miniature encoder: `python -m mmvp_ray.miniature.train --role clip|dino --out DIR`.

The CLIP role learns from captions that leave most attributes out; the DINO role from two views of the same picture.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mmvp_ray.encoders.miniature.tokenizer import build_tokenizer
from mmvp_ray.encoders.miniature.towers import (
    Params,
    embed_image,
    embed_text,
    init_tower,
    text_config,
    vision_config,
)
from mmvp_ray.miniature.augment import random_view
from mmvp_ray.miniature.losses import caption_contrast, view_contrast
from mmvp_ray.miniature.training_data import TrainingSet, build_training_set

if TYPE_CHECKING:
    import torch

PIXEL_MEAN: Final = 127.5
PIXEL_SCALE: Final = 127.5
NUM_PATCHES: Final = 64
NUM_WARMUP_GROUPS: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How one role is trained.

    num_steps, batch_size, learning_rate: of AdamW with warm-up and cosine decay. num_kept_patches: of 64 that the CLIP
    role looks at per image, until the last full_steps steps. num_groups: noun-place groups that one batch of the DINO
    role is drawn from after the warm-up, which draws from 8; few, so that negatives are told apart by attributes alone.
    sharpness: the loss's inverse temperature.
    """

    num_steps: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    num_warmup_steps: int = 60
    num_kept_patches: int = NUM_PATCHES
    full_steps: int = 0
    num_groups: int = 0
    sharpness: float = 10.0
    unknown_word_probability: float = 0.02
    num_images: int = 24_576
    seed: int = 20_240_106


RECIPES: Final[dict[str, Recipe]] = {
    "clip": Recipe(
        num_steps=2200,
        batch_size=192,
        num_kept_patches=24,
        full_steps=400,
        sharpness=20.0,
    ),
    "dino": Recipe(
        num_steps=900,
        batch_size=128,
        num_groups=2,
        num_warmup_steps=100,
        sharpness=10.0,
    ),
}

Step = Callable[[int], "torch.Tensor"]


def _normalised(view_BCHW: torch.Tensor) -> torch.Tensor:
    return (view_BCHW - PIXEL_MEAN) / PIXEL_SCALE


def _clip_step(recipe: Recipe, data: TrainingSet, generator: torch.Generator) -> tuple[dict[str, Params], Step, str]:
    """Build the CLIP role's towers and its loss at a step."""
    import torch

    tokenizer = build_tokenizer(["a picture of", "a photo of", "an image of", *data.captions])
    vision, text = vision_config(), text_config(num_words=len(tokenizer.words))
    towers = {
        "vision": init_tower(vision, generator),
        "text": init_tower(text, generator),
    }
    pixels = torch.from_numpy(data.pixels_NCHW)
    prefixes = ("", "a picture of ", "a photo of ", "an image of ")
    order = _batches(len(pixels), recipe.batch_size, generator)

    def loss_at(step: int) -> torch.Tensor:
        rows = next(order)
        prefix = prefixes[step % len(prefixes)]
        captions = [prefix + data.captions[row] for row in rows.tolist()]
        distinct = sorted(set(captions))
        caption_of_B = torch.tensor([distinct.index(caption) for caption in captions])
        words_UT = torch.tensor(tokenizer.encode(distinct))
        is_hidden = torch.rand(words_UT.shape, generator=generator) < recipe.unknown_word_probability
        words_UT = torch.where(is_hidden & (words_UT != 0), torch.ones_like(words_UT), words_UT)
        kept = None
        if step < recipe.num_steps - recipe.full_steps:
            kept = torch.rand(len(rows), NUM_PATCHES, generator=generator).argsort(1)[:, : recipe.num_kept_patches]
        view = _normalised(random_view(pixels[rows], generator))
        image_BE = embed_image(towers["vision"], vision, view, kept_BK=kept)
        return caption_contrast(
            image_BE,
            embed_text(towers["text"], text, words_UT),
            caption_of_B,
            recipe.sharpness,
        )

    config = json.dumps(
        {
            "vision": vision.as_dict(),
            "text": text.as_dict(),
            "words": list(tokenizer.words),
        }
    )
    return towers, loss_at, config


def _dino_step(recipe: Recipe, data: TrainingSet, generator: torch.Generator) -> tuple[dict[str, Params], Step, str]:
    """Build the DINO role's tower and its loss at a step."""
    import torch

    vision = vision_config()
    towers = {"vision": init_tower(vision, generator)}
    pixels = torch.from_numpy(data.pixels_NCHW)
    members = [torch.from_numpy(np.flatnonzero(data.group_N == group)) for group in range(int(data.group_N.max()) + 1)]

    def loss_at(step: int) -> torch.Tensor:
        num_groups = NUM_WARMUP_GROUPS if step < recipe.num_warmup_steps else recipe.num_groups
        groups = torch.randperm(len(members), generator=generator)[:num_groups].tolist()
        per_group = recipe.batch_size // num_groups
        rows = torch.cat([members[g][torch.randperm(len(members[g]), generator=generator)[:per_group]] for g in groups])
        views = torch.cat([random_view(pixels[rows], generator) for _ in range(2)])
        first_BE, second_BE = embed_image(towers["vision"], vision, _normalised(views)).chunk(2)
        return view_contrast(first_BE, second_BE, 1 / recipe.sharpness)

    return towers, loss_at, json.dumps({"vision": vision.as_dict()})


def _batches(num_rows: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Rows of one batch after another, every epoch in a new order."""
    import torch

    while True:
        order = torch.randperm(num_rows, generator=generator)
        for start in range(0, num_rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    warmup = min(1.0, (step + 1) / recipe.num_warmup_steps)
    return recipe.learning_rate * warmup * (0.505 + 0.495 * math.cos(math.pi * step / recipe.num_steps))


def train(role: str, data: TrainingSet, out: Path, *, recipe: Recipe, num_threads: int = 1) -> dict[str, float]:
    """Train one role and write its weights.

    Args:
        role: "clip" or "dino".
        data: what to train on.
        out: folder for <role>_<tower>.safetensors (fp16) and <role>_training.json.
        recipe: steps, batch size and so on.
        num_threads: of torch; part of what makes a run repeatable bit by bit.

    Returns:
        Training figures: loss of the last 50 steps (mean), seconds, steps.
    """
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(num_threads)
    generator = torch.Generator().manual_seed(recipe.seed)
    build = {"clip": _clip_step, "dino": _dino_step}[role]
    towers, loss_at, config = build(recipe, data, generator)
    params = [tensor.requires_grad_(True) for tower in towers.values() for tensor in tower.values()]
    groups = [
        {
            "params": [p for p in params if p.ndim > 1],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    losses: list[float] = []

    def save() -> None:
        for name, tower in towers.items():
            halves = {key: tensor.detach().to(torch.float16).contiguous() for key, tensor in tower.items()}
            path = out / f"{role}_{name}.safetensors"
            save_file(halves, path, metadata={"config": config})
            path.chmod(0o644)

    for step in range(recipe.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step == recipe.num_steps - 1:
            save()
            seconds = time.perf_counter() - start
            print(
                f"{role} step {step + 1}/{recipe.num_steps} loss {np.mean(losses[-50:]):.4f} {seconds:.0f} s",
                flush=True,
            )
    figures = {
        "loss_last_50_steps": float(np.mean(losses[-50:])),
        "seconds": time.perf_counter() - start,
        "num_steps": float(recipe.num_steps),
    }
    (out / f"{role}_training.json").write_text(json.dumps({"recipe": asdict(recipe), **figures}, indent=1) + "\n")
    return figures


def main() -> None:
    """Parse flags, render the training world (or read it from --cache) and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--role", choices=sorted(RECIPES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--cache",
        type=Path,
        help="a .npy file that keeps the rendered pixels between runs",
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.role]
    pixels = np.load(arguments.cache) if arguments.cache is not None and arguments.cache.exists() else None
    data = build_training_set(recipe.num_images, pixels_NCHW=pixels)
    if arguments.cache is not None and pixels is None:
        np.save(arguments.cache, data.pixels_NCHW)
    print(
        train(
            arguments.role,
            data,
            arguments.out,
            recipe=recipe,
            num_threads=arguments.threads,
        )
    )


if __name__ == "__main__":
    main()
