"""Patch tokens are hidden_states[layer] without prefix tokens, for every kind of tower, loaded from its published form."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.mof.tower_weights import open_tower, vit_from_timm
from mmvp_ray.mof.towers import grid_side, patch_tokens, tower_blocks, tower_facts
from tests.integration.mof_small_models import CLIP_TOWERS, SIDE_PX, save_tower, scramble

pytestmark = [pytest.mark.integration]

PREFIX = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5, "vit": 1, "vit_mae": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return {kind: save_tower(root / kind, kind) for kind in PREFIX}


def open_kind(folders: dict[str, str], kind: str) -> Any:
    return open_tower(folders[kind], family="clip" if kind in CLIP_TOWERS else "vision").model


@pytest.mark.parametrize("side_px", [SIDE_PX, 42])
@pytest.mark.parametrize("kind", PREFIX)
def test_patch_tokens_are_the_hidden_states_without_prefix(folders: dict[str, str], kind: str, side_px: int) -> None:
    tower = open_kind(folders, kind)
    pixels = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(5))
    extra = {"interpolate_pos_encoding": True} if tower_facts(tower.config.model_type).positions == "on request" else {}
    with torch.no_grad():
        hidden_states = tower(pixels, output_hidden_states=True, **extra).hidden_states
        assert len(hidden_states) == len(tower_blocks(tower)) + 1 == 4
        for layer in range(-4, 4):
            found = patch_tokens(tower, pixels, layer)
            assert found.shape == (2, (side_px // 7) ** 2, 32)
            assert torch.equal(found, hidden_states[layer][:, PREFIX[kind] :]), layer


def test_no_hook_stays_behind(folders: dict[str, str]) -> None:
    tower = open_kind(folders, "dinov2")
    for layer in (0, -1):
        patch_tokens(tower, torch.zeros(1, 3, SIDE_PX, SIDE_PX), layer)
    with pytest.raises(ValueError, match="channel"):
        patch_tokens(tower, torch.zeros(1, 2, SIDE_PX, SIDE_PX), -1)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in tower_blocks(tower))


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_the_last_layer_of_dinov2_lies_before_its_layernorm(folders: dict[str, str], kind: str) -> None:
    tower = open_kind(folders, kind)
    pixels = torch.randn(1, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        last = tower(pixels).last_hidden_state[:, PREFIX[kind] :]
        found = patch_tokens(tower, pixels, tower_facts(kind).default_layer)
        assert not torch.allclose(found, last)
        torch.testing.assert_close(tower.layernorm(found), last)


def test_mae_weights_give_the_same_tokens_each_time_and_at_their_places(folders: dict[str, str]) -> None:
    tower = open_kind(folders, "vit_mae")
    assert tower.config.model_type == "vit" and not hasattr(tower.config, "mask_ratio")
    pixels = torch.randn(1, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        assert torch.equal(patch_tokens(tower, pixels, -1), patch_tokens(tower, pixels, -1))
        # The input of the first block depends on each patch alone.
        before = patch_tokens(tower, pixels, 0)
        pixels[0, :, 7:14, 14:21] += 1.0
        changed = (patch_tokens(tower, pixels, 0) - before).abs().sum(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_a_tower_whose_class_was_replaced_still_gives_its_tokens(folders: dict[str, str]) -> None:
    tower = open_kind(folders, "dinov2")
    pixels = torch.randn(1, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        before = patch_tokens(tower, pixels, -1)
        # What fully_shard does to a module.
        tower.__class__ = type("FSDPDinov2Model", (type(tower),), {})
        assert torch.equal(patch_tokens(tower, pixels, -1), before)


def test_threads_do_not_catch_each_others_tokens(folders: dict[str, str]) -> None:
    tower = open_kind(folders, "clip")
    pixels = [torch.randn(1, 3, SIDE_PX, SIDE_PX) for _ in range(4)]
    with torch.no_grad():
        wanted = [patch_tokens(tower, each, -2) for each in pixels]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            found = [patch_tokens(tower, pixels[number], -2) for _ in range(20)]
        wrong.extend(number for each in found if not torch.equal(each, wanted[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("positions", ["", "fixed"])
def test_timms_plain_vit_becomes_transformers_vit(positions: str) -> None:
    import timm

    network = timm.models.vision_transformer.VisionTransformer(
        img_size=SIDE_PX, patch_size=7, embed_dim=32, depth=3, num_heads=4, mlp_ratio=1.5, num_classes=0,
        global_pool="avg" if positions else "token",
    )  # fmt: skip
    scramble(network, 9).eval()
    tower = vit_from_timm(network, name="timm:vit")
    caught: list[torch.Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _arguments, output: caught.append(output))
    pixels = torch.randn(2, 3, SIDE_PX, SIDE_PX)
    with torch.no_grad():
        network.forward_features(pixels)
        for layer in (1, 2, 3):
            torch.testing.assert_close(
                patch_tokens(tower, pixels, layer), caught[layer - 1][:, 1:], rtol=1e-4, atol=1e-4
            )


def test_a_weight_file_of_timm_opens_as_a_tower(tmp_path: Path) -> None:
    """The form of MoCo v3's mirror: timm's architecture and a bare file of weights."""
    import timm
    from safetensors.torch import save_file

    network = scramble(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0), 4, scale=0.05).eval()
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    found = open_tower(f"timm:vit_tiny_patch16_224/{path}", family="vision")
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = network.forward_features(pixels)[:, 1:]
        tokens = found.model.layernorm(patch_tokens(found.model, pixels, -1))
        torch.testing.assert_close(tokens, wanted, rtol=1e-3, atol=1e-3)
        assert patch_tokens(found.model, torch.randn(1, 3, 256, 256), -1).shape == (1, 256, 192)
    assert found.model.config.model_type == "vit" and len(found.mean) == len(found.std) == 3


def test_another_network_of_timm_is_refused() -> None:
    import timm

    network = timm.create_model("resnet18", pretrained=False)
    with pytest.raises(ConfigError, match=r"expected a plain ViT .* found ResNet"):
        vit_from_timm(network, name="timm:resnet18")


def test_bad_towers_are_refused_in_one_line(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a CLIP or SigLIP tower as clip, found dinov2"):
        open_tower(folders["dinov2"], family="clip")
    with pytest.raises(ConfigError, match="expected a vision-only tower as ssl, found clip_vision_model"):
        open_tower(folders["clip"], family="vision")
    with pytest.raises(ConfigError, match=r"multiple of the 7 px patches .* found 30 px; the next ones are 28 and 35"):
        grid_side(open_kind(folders, "clip").config, 30)
    tower = open_kind(folders, "clip")
    with pytest.raises(ConfigError, match="expected -4 to 3"):
        patch_tokens(tower, torch.zeros(1, 3, SIDE_PX, SIDE_PX), 4)
    with pytest.raises(ConfigError, match="expected square images"):
        patch_tokens(tower, torch.zeros(1, 3, SIDE_PX, 2 * SIDE_PX), -1)
    with pytest.raises(
        ConfigError,
        match=r"expected a vision tower of model_type clip_vision_model, .*load its weights as model_type vit",
    ):
        tower_facts("vit_mae")
    broken = Path(save_tower(tmp_path / "broken", "dinov2"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"expected weights of a Dinov2Model in .*broken, found none that load"):
        open_tower(str(broken), family="vision")
    with pytest.raises(ConfigError, match="found nothing"):
        open_tower(str(tmp_path / "nowhere"), family="vision")
