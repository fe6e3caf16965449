"""Encoders described by a child process: the same specs and errors as here, and no library imported on this side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmvp_ray.encoders import resolve_encoder, resolve_encoders, resolving
from mmvp_ray.encoders.spec import EncoderSpec
from mmvp_ray.errors import ConfigError
from tests.integration.encoders_small_models import save_open_clip

pytestmark = pytest.mark.integration

APART = """
import json, sys
from dataclasses import asdict
from mmvp_ray.encoders import resolve_encoders
from mmvp_ray.errors import MmvpError
try:
    found = {name: asdict(spec) for name, spec in resolve_encoders(sys.argv[1:], device="cpu").items()}
except MmvpError as error:
    found = {"error": [type(error).__name__, str(error)]}
print(json.dumps({"found": found, "imported": sorted({"torch", "open_clip", "transformers"} & sys.modules.keys())}))
"""


def resolve_apart(*names: str, program: str = APART) -> dict[str, object]:
    """What a fresh process finds, as JSON."""
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_open_clip(tmp_path_factory.mktemp("open_clip") / "model")


def test_specs_equal_those_found_here_without_an_import(saved: Path) -> None:
    names = [f"open_clip:{saved}", "miniature:dino"]
    found = resolve_apart(*names)

    specs = found["found"]
    assert isinstance(specs, dict)
    assert {name: EncoderSpec.from_dict(spec) for name, spec in specs.items()} == {
        name: resolve_encoder(name, device="cpu") for name in names
    }
    assert found["imported"] == []


def test_an_error_comes_as_it_was_raised(tmp_path: Path) -> None:
    name = f"hf:{tmp_path}/none"
    with pytest.raises(ConfigError) as here:
        resolve_encoder(name, device="cpu")

    assert resolve_apart(name)["found"] == {"error": ["ConfigError", str(here.value)]}


def test_a_child_that_dies_is_made_up_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resolving, "LIBRARIES", {"open_clip": "a library that nobody has imported"})
    # -c reads no module: the child ends at once, with an error.
    monkeypatch.setattr(resolving, "CHILD", ("-c", "raise SystemExit(3)"))

    found = resolve_encoders([f"open_clip:{saved}"], device="cpu")

    assert found == {f"open_clip:{saved}": resolve_encoder(f"open_clip:{saved}", device="cpu")}
    assert "described here" in caplog.text


def test_the_child_ends_with_a_caller_who_does_not_wait(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "LIBRARIES", {"open_clip": "a library that nobody has imported"})
    started = []
    real = subprocess.Popen

    def popen(*args: object, **options: object) -> object:
        started.append(real(*args, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(resolving.subprocess, "Popen", popen)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_encoders([f"open_clip:{saved}"], device="cpu", meanwhile=interrupt)

    assert [child.poll() is not None for child in started] == [True]


def test_nothing_is_done_meanwhile_where_nothing_is_waited_for() -> None:
    def never() -> None:
        raise AssertionError("called")

    assert list(resolve_encoders(["miniature:dino"], device="cpu", meanwhile=never)) == ["miniature:dino"]
