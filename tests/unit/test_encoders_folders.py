"""Directories of encoders: what a glob stands for, and remote ones that are copied once, whole, and again when they change."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmvp_ray import storage
from mmvp_ray.encoders.folders import anywhere, expand_names, is_url, local_copy
from mmvp_ray.encoders.locations import local_directory, looks_like_path
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.errors import ConfigError
from mmvp_ray.images.geometry import Geometry


class TestExpandedNames:
    @pytest.fixture(params=["", "memory://"])
    def encoders(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        for name in ("b-large", "a-small", ".hidden", "deep/one", "deep/two"):
            storage.write_bytes(f"{request.param}{tmp_path}/encoders/{name}/config.json", b"{}")
        return f"{request.param}{tmp_path}/encoders"

    def test_every_directory_once_in_order(self, encoders: str) -> None:
        given_names = ["hf:facebook/dinov2-large", f"hf:{encoders}/b-large", f"hf:{encoders}/[ab]-*", "miniature:clip"]
        assert expand_names(given_names, flag="--far") == (
            "hf:facebook/dinov2-large", f"hf:{encoders}/b-large", f"hf:{encoders}/a-small", "miniature:clip",
        )  # fmt: skip

    def test_a_relative_name_beside_the_glob_comes_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            storage.write_bytes(f"{tmp_path}/encoders/{name}/config.json", b"{}")
        monkeypatch.chdir(tmp_path)
        assert expand_names(["hf:./encoders/b", "hf:encoders/*", "hf:encoders/b/"], flag="--far") == (
            "hf:./encoders/b",
            f"hf:{tmp_path}/encoders/a",
        )

    def test_a_new_directory_is_a_new_encoder(self, encoders: str) -> None:
        pattern = f"open_clip:{encoders}/*-*"
        before = expand_names([pattern], flag="--near")
        storage.write_bytes(f"{encoders}/c-new/config.json", b"{}")
        assert expand_names([pattern], flag="--near") == (*before, f"open_clip:{encoders}/c-new")

    def test_globs_on_several_levels(self, encoders: str) -> None:
        assert expand_names([f"timm:{encoders}/d*/t?o"], flag="--far") == (f"timm:{encoders}/deep/two",)
        assert expand_names([f"timm:{encoders}/*/two"], flag="--far") == (f"timm:{encoders}/deep/two",)
        assert expand_names([f"timm:{encoders}/.h*"], flag="--far") == (f"timm:{encoders}/.hidden",)

    @pytest.mark.parametrize("rest", ["none*", "*/three", "none/*"])
    def test_no_match_is_an_error(self, encoders: str, rest: str) -> None:
        with pytest.raises(ConfigError, match=r"--far hf:.*found none"):
            expand_names([f"hf:{encoders}/{rest}"], flag="--far")

    def test_a_file_among_them_is_an_error_that_names_it(self, encoders: str) -> None:
        storage.write_bytes(f"{encoders}/README.md", b"x")
        with pytest.raises(ConfigError, match=r"README\.md"):
            expand_names([f"hf:{encoders}/*"], flag="--far")

    def test_other_backends_take_no_directories(self) -> None:
        with pytest.raises(ConfigError, match="only these take directories"):
            expand_names(["python:my_*:factory"], flag="--far")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/x", True), ("memory://x", True), ("hf-hub:laion/CLIP", False), ("ViT-L-14//path/to/file", False),
     ("/a//b", False), ("owner/name", False)],
)  # fmt: skip
def test_is_url(text: str, expected: bool) -> None:
    assert is_url(text) is expected
    assert looks_like_path(text) is (expected or text.startswith("/"))


class TestLocalCopy:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("MMVP_RAY_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache" / "encoders"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        url = f"memory://{tmp_path}/encoders/one"
        for name in (
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "README.md",
            "onnx/model.json",
            "merges.txt",
        ):
            storage.write_bytes(f"{url}/{name}", name.encode())
        return url

    def test_the_files_that_are_needed_once(self, url: str, cache: Path) -> None:
        copy = local_copy(url, name="n")
        assert {path.name: path.read_text() for path in copy.iterdir()} == {
            name: name for name in ("config.json", "model.safetensors", "merges.txt")
        }
        (copy / "config.json").write_text("still here")
        assert local_copy(url + "/", name="n") == copy and (copy / "config.json").read_text() == "still here"
        assert local_directory(url, name="n") == copy
        assert [path.name for path in cache.iterdir() if path.is_dir()] == [copy.name] and copy.name.startswith("one-")

    def test_torch_files_where_nothing_else_is(self, url: str) -> None:
        storage.remove(f"{url}/model.safetensors")
        assert (local_copy(url, name="n") / "pytorch_model.bin").is_file()

    def test_changed_files_are_another_copy(self, url: str) -> None:
        before = local_copy(url, name="n")
        storage.write_bytes(f"{url}/model.safetensors", b"fine-tuned again")
        after = local_copy(url, name="n")
        assert after != before and (after / "model.safetensors").read_bytes() == b"fine-tuned again"

    def test_directories_of_one_name_are_two_copies(self, url: str) -> None:
        storage.write_bytes(f"{url}/sub/one/config.json", b"config.json")
        assert local_copy(f"{url}/sub/one", name="n") != local_copy(url, name="n")

    def test_many_at_once_make_one(self, url: str, cache: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            copies = set(pool.map(lambda at: local_copy(url, name="n"), range(16)))
        assert len(copies) == 1 and not list(cache.glob(".*.tmp"))

    def test_a_copy_that_was_cut_off_is_none(self, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                local_copy(url, name="n")
        assert not [path for path in cache.iterdir() if path.is_dir()]
        assert local_copy(url, name="n").is_dir()

    @pytest.mark.parametrize("names", [[], ["README.md"], ["sub/config.json"]])
    def test_nothing_there_is_one_line(self, tmp_path: Path, names: list[str]) -> None:
        for name in names:
            storage.write_bytes(f"memory://{tmp_path}/none/{name}", b"x")
        with pytest.raises(ConfigError, match="Encoder 'hf:x'") as caught:
            local_copy(f"memory://{tmp_path}/none", name="hf:x")
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_cache_that_cannot_be_written_is_one_line(self, url: str, cache: Path) -> None:
        cache.parent.mkdir(parents=True)
        cache.parent.chmod(0o500)
        with pytest.raises(ConfigError, match="no permission"):
            local_copy(url, name="n")


def test_other_machines_open_the_url() -> None:
    geometry = Geometry(library="pil", resize="squash", resize_px=(8, 8), interpolation="bilinear", crop_px=None)
    spec = EncoderSpec(
        name="hf:s3://b/one", backend="hf", source="/home/me/.cache/one-1", architecture="a", weights_sha256="0" * 64,
        geometry=geometry, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), feature="f", dtype="float32", dim=2, family="vision",
        num_parameters=1,
    )  # fmt: skip
    assert anywhere(spec).source == "s3://b/one" and anywhere(spec).fingerprint == spec.fingerprint
