"""A small data set in LLaVA's form, with pictures and texts alone, and the small backbones it is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmvp_ray.mof.data.collate import CollateConfig
from mmvp_ray.mof.data.convert import ConvertConfig, convert
from mmvp_ray.mof.data.order import OrderConfig
from mmvp_ray.mof.recipe import MoFRecipe
from mmvp_ray.mof.training.config import OptimConfig, TrainConfig
from tests.integration.mof_small_models import pictures, save_llama, save_tower

ANSWERS = ("a red cat .", "a blue dog .", "it is left .", "no", "yes , it is right .", "blue")


def save_backbones(root: Path) -> dict[str, str]:
    """Folders of a CLIP, a DINOv2 and a Llama."""
    return {
        "clip": save_tower(root / "clip", "clip"),
        "ssl": save_tower(root / "dinov2", "dinov2"),
        "llm": save_llama(root / "llm"),
    }


def save_rows(root: Path, *, num_rows: int = 26, template: str = "default") -> dict[str, str]:
    """Converted rows and their images; every fifth row is text alone, unless they are captions."""
    (root / "images").mkdir(parents=True)
    records: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures(num_rows)):
        turns = [("human", "<image>\nwhat is it ?"), ("gpt", ANSWERS[number % len(ANSWERS)])]
        if template == "default" and number % 3 == 0:
            turns += [("human", "is the cat red ?"), ("gpt", ANSWERS[(number * 7 + 1) % len(ANSWERS)])]
        record: dict[str, Any] = {"id": str(number), "image": f"{number}.png"}
        if template == "default" and number % 5 == 4:
            del record["image"]
            turns[0] = ("human", "what is it ?")
        else:
            picture.save(root / "images" / f"{number}.png")
        record["conversations"] = [{"from": speaker, "value": text} for speaker, text in turns]
        records.append(record)
    (root / "rows.json").write_text(json.dumps(records))
    convert(ConvertConfig(source=str(root / "rows.json"), out=str(root / "rows"), template=template))  # type: ignore[arg-type]
    return {"rows": str(root / "rows"), "images": str(root / "images")}


def config_for(
    backbones: dict[str, str], data: dict[str, str], out: Path | str, *, mode: str = "interleaved", **changes: Any
) -> TrainConfig:
    """A stage of float32 with large steps; `changes` are TrainConfig's."""
    model = MoFRecipe(
        clip=backbones["clip"],
        ssl=None if mode == "none" else backbones["ssl"],
        llm=backbones["llm"],
        mode=mode,  # type: ignore[arg-type]
    )
    settings: dict[str, Any] = {
        "stage": "finetune",
        "order": OrderConfig(batch_rows=4, seed=3),
        "collate": CollateConfig(max_tokens=128),
        "optim": OptimConfig(learning_rate=1e-3, warmup_fraction=0.1),
        "precision": "fp32",
    }
    return TrainConfig(model=model, out=str(out), **data, **settings | changes)
