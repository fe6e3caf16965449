"""The miniature encoders: they resolve, load, embed, and the CLIP role names what it sees."""

from __future__ import annotations

import dataclasses
import pickle
from importlib.resources import files

import numpy as np
import pytest

from mmvp_ray.encoders import EncoderSpec, TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.encoders.miniature.tokenizer import build_tokenizer
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import apply_geometry
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.words import PLACE_PHRASES
from mmvp_ray.miniature.world import NOUNS, PLACES, sample_scene

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.integration

SEED = 77


@pytest.fixture(scope="module")
def pixels_BCHW() -> torch.Tensor:
    return torch.from_numpy(np.stack([render(sample_scene(SEED, k)).transpose(2, 0, 1) for k in range(96)]))


def load(role: str) -> tuple[EncoderSpec, TextEncoder]:
    spec = resolve_encoder(f"miniature:{role}", device="cpu")
    encoder = load_encoder(spec, device="cpu")
    return spec, encoder  # type: ignore[return-value]


def test_all_weights_together_are_small() -> None:
    weights = files("mmvp_ray.encoders.miniature") / "weights"
    num_bytes = {entry.name: len(entry.read_bytes()) for entry in weights.iterdir() if entry.is_file()}
    assert {name for name in num_bytes if name.endswith(".safetensors")} == {
        "clip_vision.safetensors",
        "clip_text.safetensors",
        "dino_vision.safetensors",
    }
    assert sum(num_bytes.values()) <= 8 * 2**20


@pytest.mark.parametrize(("role", "family"), [("clip", "clip"), ("dino", "vision")])
def test_spec_says_what_the_encoder_is(role: str, family: str) -> None:
    spec = resolve_encoder(f"miniature:{role}", device="cpu")
    assert (spec.backend, spec.family, spec.dim, spec.dtype) == (
        "miniature",
        family,
        128,
        "float32",
    )
    assert spec.slug == f"miniature-{role}-{spec.fingerprint}"
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert 0.8e6 < spec.num_parameters < 1.5e6
    other = resolve_encoder("miniature:dino" if role == "clip" else "miniature:clip", device="cpu")
    assert spec.fingerprint != other.fingerprint


def test_pictures_of_the_world_reach_the_encoder_bit_by_bit() -> None:
    geometry = resolve_encoder("miniature:clip", device="cpu").geometry
    picture = render(sample_scene(SEED, 0))
    assert np.array_equal(apply_geometry(picture, geometry), picture.transpose(2, 0, 1))
    assert apply_geometry(np.zeros((50, 90, 3), dtype=np.uint8), geometry).shape == (
        3,
        64,
        64,
    )


@pytest.mark.parametrize("role", ["clip", "dino"])
def test_embeddings_do_not_depend_on_the_rest_of_the_batch(role: str, pixels_BCHW: torch.Tensor) -> None:
    _, encoder = load(role)
    emb_BD = encoder.embed(pixels_BCHW[:8])
    assert emb_BD.dtype == torch.float32
    assert emb_BD.shape == (8, 128)
    assert bool(torch.isfinite(emb_BD).all())
    alone = torch.cat([encoder.embed(pixels_BCHW[k : k + 1]) for k in range(8)])
    assert float(torch.nn.functional.cosine_similarity(emb_BD, alone).min()) > 0.99999


def test_bfloat16_stays_close_to_float32(pixels_BCHW: torch.Tensor) -> None:
    spec = resolve_encoder("miniature:dino", device="cpu", dtype="bfloat16")
    _, exact = load("dino")
    half = load_encoder(spec, device="cpu").embed(pixels_BCHW[:16])
    assert float(torch.nn.functional.cosine_similarity(half, exact.embed(pixels_BCHW[:16])).min()) > 0.99


def test_zero_shot_names_object_and_place(pixels_BCHW: torch.Tensor) -> None:
    _, encoder = load("clip")
    scenes = [sample_scene(SEED, k) for k in range(len(pixels_BCHW))]
    names = [(noun, place) for noun in NOUNS for place in PLACES]
    texts = [
        f"a picture of {'an' if noun == 'elephant' else 'a'} {noun} {PLACE_PHRASES[place]}" for noun, place in names
    ]
    scores = (
        torch.nn.functional.normalize(encoder.embed(pixels_BCHW), dim=1)
        @ torch.nn.functional.normalize(encoder.embed_texts(texts), dim=1).T
    )
    found = [names[k] for k in scores.argmax(1).tolist()]
    right = np.mean([(scene.noun, scene.place) == name for scene, name in zip(scenes, found, strict=True)])
    assert right > 0.9  # Chance is 1/48.


def test_texts_keep_their_order_and_unknown_words_are_one_word() -> None:
    _, encoder = load("clip")
    texts = [
        "a cat in a room",
        "a house at night",
        "A cat in a room!",
        "zyx in a room",
        "qqq in a room",
        "",
    ]
    emb_BD = encoder.embed_texts(texts)
    assert emb_BD.shape == (6, 128)
    # The same words at another place of the batch: equal but for the order of additions.
    torch.testing.assert_close(emb_BD[0], emb_BD[2])
    torch.testing.assert_close(emb_BD[3], emb_BD[4])
    assert not torch.equal(emb_BD[0], emb_BD[1])
    assert bool(torch.isfinite(emb_BD).all())
    assert encoder.embed_texts([]).shape == (0, 128)


def test_tokenizer_numbers_words_alphabetically_behind_padding_and_unknown() -> None:
    tokenizer = build_tokenizer(["b a", "C, a"], context=3)
    assert tokenizer.words == ("<pad>", "<unknown>", "a", "b", "c")
    assert tokenizer.encode(["c A z a", "", "b"]) == [[4, 2, 1], [1, 0, 0], [3, 0, 0]]


def test_patch_tokens_leave_out_the_class_token_and_count_layers_as_hidden_states(
    pixels_BCHW: torch.Tensor,
) -> None:
    _, encoder = load("dino")
    tokens = {layer: encoder.patch_tokens(pixels_BCHW[:2], layer) for layer in (0, 3, 4, -1, -2)}  # type: ignore[attr-defined]
    assert all(value.shape == (2, 64, 128) for value in tokens.values())
    assert torch.equal(tokens[4], tokens[-1])
    assert torch.equal(tokens[3], tokens[-2])
    assert not torch.equal(tokens[0], tokens[3])
    for layer in (5, -6):
        with pytest.raises(ConfigError, match="layer"):
            encoder.patch_tokens(pixels_BCHW[:2], layer)  # type: ignore[attr-defined]


def test_wrong_uses_name_what_is_known() -> None:
    with pytest.raises(ConfigError, match="clip, dino"):
        resolve_encoder("miniature:mae", device="cpu")
    spec, encoder = load("dino")
    with pytest.raises(ConfigError, match="miniature:clip"):
        encoder.embed_texts(["a cat"])
    with pytest.raises(DataError, match="same version"):
        load_encoder(dataclasses.replace(spec, weights_sha256="0" * 64), device="cpu")
