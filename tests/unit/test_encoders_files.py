"""Weight files: what they hash to, which ones count, and what a missing one is called."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from mmvp_ray.encoders import hf_files
from mmvp_ray.encoders.hf_families import family_of
from mmvp_ray.encoders.hf_files import read_config, weight_files
from mmvp_ray.encoders.locations import first_file
from mmvp_ray.encoders.weights import check_suffix, hash_files
from mmvp_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_one_file_hashes_to_its_own_sha256_under_any_name(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.bin"):
        (tmp_path / name).write_bytes(b"weights" * 1000)
        assert hash_files([tmp_path / name]) == hashlib.sha256(b"weights" * 1000).hexdigest()


def test_several_files_hash_to_what_sha256sum_prints_hashed(tmp_path: Path) -> None:
    paths = [tmp_path / "m-2.safetensors", tmp_path / "m-1.safetensors"]
    for path in paths:
        path.write_bytes(path.name.encode())
    lines = [
        f"{hashlib.sha256(name).hexdigest()}  {name.decode()}\n" for name in (b"m-1.safetensors", b"m-2.safetensors")
    ]
    assert hash_files(paths) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert hash_files(paths) == hash_files(paths[::-1])


def test_a_file_that_cannot_be_read_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.bin"):
        hash_files([tmp_path / "missing.bin"])


def test_only_formats_without_pickled_code_are_taken(tmp_path: Path) -> None:
    check_suffix(tmp_path / "w.pt", name="n")
    with pytest.raises(ConfigError, match=r"expected a file ending in \.safetensors"):
        check_suffix(tmp_path / "w.npz", name="n")


def test_safetensors_come_before_torch_files_and_single_files_before_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        weight_files(tmp_path, name="n")
    (tmp_path / "pytorch_model.bin").touch()
    assert weight_files(tmp_path, name="n") == [tmp_path / "pytorch_model.bin"]
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"found no model-1\.safetensors, model-2\.safetensors"):
        weight_files(tmp_path, name="n")
    shards = [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
    for shard in shards:
        shard.touch()
    assert weight_files(tmp_path, name="n") == shards
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path, name="n") == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("text", ["", "[", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_a_data_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match="weight_map"):
        weight_files(tmp_path, name="n")


def test_an_index_cannot_point_outside_its_directory(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "secret.safetensors").touch()
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"found no secret\.safetensors"):
        weight_files(model, name="n")


@pytest.mark.parametrize(("text", "told"), [(None, "found none"), ("{", "expected JSON"), ("[]", "found list")])
def test_an_unusable_config_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_config(tmp_path, name="n")


def test_unknown_model_types_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"clip, dinov2, .*vit_mae, found 'bert'"):
        family_of({"model_type": "bert"}, name="n", trust_remote_code=False)


def test_naflex_is_refused_with_a_fixed_resolution_in_its_place() -> None:
    with pytest.raises(ConfigError, match=r"NaFlex.*siglip2-base-patch16-224"):
        family_of({"model_type": "siglip2"}, name="n", trust_remote_code=False)


def test_code_that_comes_with_weights_runs_only_when_asked_for() -> None:
    config = {"model_type": "mine", "auto_map": {"AutoModel": "m.M"}}
    with pytest.raises(ConfigError, match=r"--trust-remote-code"):
        family_of(config, name="n", trust_remote_code=False)
    assert family_of(config, name="n", trust_remote_code=True).model_class == "AutoModel"
    assert family_of({**config, "model_type": "vit"}, name="n", trust_remote_code=True).model_class == "ViTModel"


def test_first_file_keeps_the_order_of_preference(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    with pytest.raises(ConfigError, match="expected one of a, c in"):
        first_file(tmp_path, ("a", "c"), name="n")
    (tmp_path / "a").touch()
    assert first_file(tmp_path, ("a", "b"), name="n") == tmp_path / "a"


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        ({}, ["preprocessor_config.json"]),
        ({"text_config": {}}, ["preprocessor_config.json", "tokenizer.json"]),
        ({"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "other/repo--its.C"}}, ["preprocessor_config.json", "modeling_x.py"]),
    ],
)  # fmt: skip
def test_a_cached_model_is_whole_with_all_that_it_is_opened_for(
    tmp_path: Path, config: dict[str, object], needs: list[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for missing in ["model.safetensors", *needs]:
        assert not hf_files._is_whole(tmp_path, with_code=True, is_text_only=False), missing
        (tmp_path / missing).touch()
    assert hf_files._is_whole(tmp_path, with_code=True, is_text_only=False)


def test_a_cached_language_model_is_whole_with_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for missing in ["model.safetensors", "tokenizer.model"]:
        assert not hf_files._is_whole(tmp_path, with_code=False, is_text_only=True), missing
        (tmp_path / missing).touch()
    assert hf_files._is_whole(tmp_path, with_code=False, is_text_only=True)
