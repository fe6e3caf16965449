"""Imports of libraries that would import wandb for what is not used here: seconds of each process, and folders that outlive it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = "wandb"
"""Makes two temporary folders when it is imported, and removes them at an orderly end, which Ray's workers do not have."""


def lean_import(name: str) -> Any:
    """The module of that name (timm, open_clip, img2dataset or a part of them), imported without wandb.

    Raises:
        ImportError: the module cannot be imported.
    """
    with _empty_in_its_place():
        return importlib.import_module(name)


@contextlib.contextmanager
def _empty_in_its_place() -> Iterator[None]:
    """Inside this context `import wandb` gives an empty module; one that is there already stays, and who imports it later gets the real one."""
    if UNUSED in sys.modules:
        yield
        return
    empty = ModuleType(UNUSED)
    # transformers looks for it with find_spec, which refuses a module without a spec.
    empty.__spec__ = ModuleSpec(UNUSED, None)
    sys.modules[UNUSED] = empty
    try:
        yield
    finally:
        if sys.modules.get(UNUSED) is empty:
            del sys.modules[UNUSED]
