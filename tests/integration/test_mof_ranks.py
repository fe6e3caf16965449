"""Two ranks with FSDP2 take the step that one process takes on the mean of their losses, though one rank has no picture at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmvp_ray.mof.adapters import save_adapters
from mmvp_ray.mof.backbones import from_backbones
from mmvp_ray.mof.checkpoints import load_model
from tests.integration.mof_small_models import pictures, save_llama, save_tower, scramble

pytestmark = [pytest.mark.integration]


@pytest.mark.parametrize(("stage", "towers"), [("align", "whole"), ("finetune", "split")])
def test_two_ranks_equal_one_process(tmp_path: Path, stage: str, towers: str) -> None:
    model, processor = from_backbones(
        save_tower(tmp_path / "clip", "clip"),
        save_tower(tmp_path / "dinov2", "dinov2"),
        save_llama(tmp_path / "llm"),
        mode="interleaved",
    )
    for adapter in model.adapters().values():
        scramble(adapter, 11)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    batches = []
    for text, images in (("<image> what is red ?", pictures(1)), ("is the cat blue ? no", None)):
        batch = dict(processor(text=[text], images=images, return_tensors="pt"))
        batches.append(
            batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, -100)}
        )
    torch.save(batches, tmp_path / "batches.pt")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integration.mof_rank", str(tmp_path), str(rank), stage, towers],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=280)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said

    model.freeze(stage)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    (sum(model(**batch).loss for batch in batches) / 2).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer.step()
    found = torch.load(tmp_path / f"grads_{stage}.pt", weights_only=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    after, _ = load_model(str(tmp_path / f"after_{stage}"))
    torch.testing.assert_close(after.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-5)
    save_adapters(after, str(tmp_path / "adapters.safetensors"))
