"""EncoderSpec: what changes the fingerprint and what does not, and that bad fields are refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.encoders.spec import EncoderSpec, canonical_json, require_same
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.geometry import Geometry

GEOMETRY = Geometry(library="pil", resize="shortest", resize_px=(224, 224), interpolation="bicubic", crop_px=(224, 224))


def make_spec(**changes: Any) -> EncoderSpec:
    fields: dict[str, Any] = {
        "name": "open_clip:ViT-L-14/openai",
        "backend": "open_clip",
        "source": "ViT-L-14/openai",
        "architecture": canonical_json({"label": "ViT-L-14-quickgelu", "model_cfg": {"embed_dim": 768}}),
        "weights_sha256": "ab" * 32,
        "geometry": GEOMETRY,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "feature": "projected image embedding",
        "dtype": "float16",
        "dim": 768,
        "family": "clip",
        "num_parameters": 427_616_513,
    }
    return EncoderSpec(**(fields | changes))


def test_fingerprint_is_16_hex_digits_and_the_same_in_every_process() -> None:
    # A fixed value: a change of it orphans every stored vector, so it must be meant (then raise the version as well).
    assert make_spec().fingerprint == "5e0342505e42ff3f"


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "hf"},
        {"architecture": "other"},
        {"weights_sha256": "ac" * 32},
        {"geometry": dataclasses.replace(GEOMETRY, resize_px=(225, 225))},
        {"geometry": dataclasses.replace(GEOMETRY, crop_px=(223, 224))},
        {"geometry": dataclasses.replace(GEOMETRY, interpolation="bilinear")},
        {"geometry": dataclasses.replace(GEOMETRY, library="torchvision")},
        {"mean": (0.5, 0.4, 0.30001)},
        {"std": (0.2, 0.3, 0.41)},
        {"feature": "LayerNormed CLS"},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_fingerprint_and_slug_change_with_what_changes_vectors(changes: dict[str, Any]) -> None:
    assert make_spec(**changes).fingerprint != make_spec().fingerprint
    assert make_spec(**changes).slug != make_spec().slug


@pytest.mark.parametrize("changes", [{"name": "open_clip:/elsewhere"}, {"source": "/elsewhere"}], ids=str)
def test_fingerprint_and_slug_stay_when_files_move(changes: dict[str, Any]) -> None:
    assert make_spec(**changes).fingerprint == make_spec().fingerprint
    assert make_spec(**changes).slug == make_spec().slug


def test_fingerprint_takes_whole_numbers_for_floats() -> None:
    as_int: Any = (0, 0, 0)
    assert make_spec(mean=as_int).fingerprint == make_spec(mean=(0.0, 0.0, 0.0)).fingerprint


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_slug_is_safe_in_paths(name: str, architecture: str) -> None:
    architecture_json = canonical_json({"label": architecture})
    for spec in (make_spec(name=name, architecture=architecture_json), make_spec(architecture="_" + architecture)):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", spec.slug)
        assert spec.slug.endswith(f"-{spec.fingerprint}")
        assert len(spec.slug) <= 48 + 1 + 16


def test_slug_is_readable() -> None:
    assert make_spec().slug.startswith("ViT-L-14-quickgelu-")


def test_pickle_is_small_and_keeps_the_fingerprint() -> None:
    data = pickle.dumps(make_spec())
    assert len(data) < 10_000
    assert pickle.loads(data) == make_spec()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": ""}, "name"),
        ({"source": ""}, "source"),
        ({"architecture": ""}, "architecture"),
        ({"weights_sha256": "xyz"}, "64 hex digits"),
        ({"dtype": "float64"}, "float16, float32, bfloat16"),
        ({"family": "audio"}, "clip, vision"),
        ({"dim": 0}, "dim >= 1"),
        ({"num_parameters": -1}, "num_parameters"),
        ({"mean": (0.5, float("nan"), 0.3)}, "mean"),
        ({"std": (0.2, 0.0, 0.4)}, "std"),
        ({"std": (0.2, 0.3)}, "3 finite numbers"),
    ],
    ids=str,
)
def test_unusable_fields_are_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        make_spec(**changes)
    assert "\n" not in str(caught.value)


def test_require_same_names_what_differs() -> None:
    require_same(make_spec(), make_spec(name="other", source="/moved"))
    with pytest.raises(DataError, match="differs in weights_sha256, dtype"):
        require_same(make_spec(), make_spec(weights_sha256="cd" * 32, dtype="float32"))


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False, allow_infinity=False)))
)
def test_canonical_json_is_json_and_blind_to_order(content: dict[str, Any]) -> None:
    text = canonical_json(content)
    assert text.isascii()
    assert json.loads(text) == content
    assert text == canonical_json(dict(reversed(content.items())))
