"""Imports without wandb: it is empty for who is imported, real for who comes later, and what is there already stays."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mmvp_ray.lean_import import lean_import


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library that imports wandb, one that cannot be imported, and a wandb."""
    (tmp_path / "imports_it.py").write_text("import wandb\nfound = wandb\n")
    (tmp_path / "fails.py").write_text("import wandb\nraise ImportError('no such part')\n")
    (tmp_path / "wandb.py").write_text("is_real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield tmp_path
    for name in ("imports_it", "fails", "wandb"):
        sys.modules.pop(name, None)


def test_it_is_empty_inside_and_real_behind(libraries: Path) -> None:
    found = lean_import("imports_it").found
    assert isinstance(found, ModuleType) and not hasattr(found, "is_real")
    assert "wandb" not in sys.modules
    assert importlib.import_module("wandb").is_real


def test_transformers_can_ask_for_it_inside(libraries: Path) -> None:
    (libraries / "imports_it.py").write_text("from importlib.util import find_spec\nspec = find_spec('wandb')\n")
    assert lean_import("imports_it").spec.name == "wandb"


def test_one_that_is_there_stays(libraries: Path) -> None:
    there = importlib.import_module("wandb")
    assert lean_import("imports_it").found is there
    assert sys.modules["wandb"] is there


def test_an_import_that_fails_leaves_nothing(libraries: Path) -> None:
    with pytest.raises(ImportError, match="no such part"):
        lean_import("fails")
    assert "wandb" not in sys.modules
