"""Names of hub repositories: the cache first, and what is said when the hub cannot be reached or refuses."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mmvp_ray.encoders import load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError, TransientError
from tests.integration.encoders_small_models import embed_pictures, save_hf

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

COMMIT = "0123456789" * 4


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds owner/dino at one commit, and no network."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--owner--dino"
    save_hf(repository / "snapshots" / COMMIT, "dinov2")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return cache


def test_a_cached_repository_is_pinned_to_its_commit(hub_cache: Path, tmp_path: Path) -> None:
    import torch

    spec = resolve_encoder("hf:owner/dino", device="cpu")
    assert spec.source == f"owner/dino@{COMMIT}"
    emb_BD = embed_pictures(load_encoder(spec, device="cpu"))
    for name in (f"hf:owner/dino@{COMMIT}", "hf:owner/dino@main"):
        assert resolve_encoder(name, device="cpu").fingerprint == spec.fingerprint

    copy = shutil.copytree(hub_cache / "models--owner--dino" / "snapshots" / COMMIT, tmp_path / "copy")
    local = resolve_encoder(f"hf:{copy}", device="cpu")
    assert local.fingerprint == spec.fingerprint
    assert torch.equal(embed_pictures(load_encoder(local, device="cpu")), emb_BD)


@pytest.mark.parametrize("name", ["hf:owner/other", "hf:owner/dino@v2", "timm:hf-hub:owner/other"])
def test_offline_and_absent_says_what_was_tried_and_what_to_do(hub_cache: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_encoder(name, device="cpu")
    message = str(caught.value)
    for told in (name, "tried", "the cache for owner/", "cannot be reached", "hf download owner/"):
        assert told in message
    assert "\n" not in message


def test_a_snapshot_without_weights_is_not_taken_for_whole(hub_cache: Path) -> None:
    (hub_cache / "models--owner--dino" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        resolve_encoder("hf:owner/dino", device="cpu")


def test_a_snapshot_without_its_processor_is_completed(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Dinov2Model.from_pretrained leaves it, which needs no processor."""
    import huggingface_hub

    snapshot = hub_cache / "models--owner--dino" / "snapshots" / COMMIT
    processor = (snapshot / "preprocessor_config.json").read_bytes()
    (snapshot / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="expected preprocessor_config"):
        resolve_encoder("hf:owner/dino", device="cpu")
    cached = huggingface_hub.snapshot_download

    def download(*words: Any, **options: Any) -> str:
        if not options.get("local_files_only"):
            (snapshot / "preprocessor_config.json").write_bytes(processor)
        return cached(*words, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_encoder("hf:owner/dino", device="cpu").source == f"owner/dino@{COMMIT}"


def test_what_is_no_id_and_no_path_is_refused(hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match="a hub id such as owner/name, found 'no such/thing here/at all'"):
        resolve_encoder("hf:no such/thing here/at all", device="cpu")


def answer(status: int) -> Any:
    """The hub client's error for an HTTP status, as its own code raises it."""
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    http: Any = __import__(HfHubHTTPError.__bases__[0].__module__.split(".")[0])
    request = http.Request("GET", "https://hub.invalid/api")
    kind = RepositoryNotFoundError if status == 404 else HfHubHTTPError
    return kind(f"{status} from the hub", response=http.Response(status, request=request))


@pytest.mark.parametrize(
    ("raised", "expected", "told"),
    [
        (404, ConfigError, "no repository owner/absent that this user may read"),
        (403, ConfigError, "the hub refused owner/absent"),
        (429, TransientError, "the hub refused owner/absent"),
        (503, TransientError, "the hub refused owner/absent"),
        ("ReadTimeout", TransientError, "broke off"),
        (OSError(28, "No space left on device"), ResourceError, "disk"),
        (OSError(30, "Read-only file system"), ConfigError, "HF_HOME"),
    ],
    ids=str,
)
def test_what_the_hub_answers_decides_whether_a_retry_helps(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, expected: type[MmvpError], told: str
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(raised, int):
        error = answer(raised)
    elif isinstance(raised, str):
        error = getattr(__import__(HfHubHTTPError.__bases__[0].__module__.split(".")[0]), raised)("timed out")
    else:
        error = raised

    def download(_repo_id: str, *, local_files_only: bool = False, **_arguments: Any) -> str:
        raise LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(expected, match=re.escape(told)):
        resolve_encoder("hf:owner/absent", device="cpu")
