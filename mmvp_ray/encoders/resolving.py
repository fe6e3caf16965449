"""Encoders are described by a child process, meanwhile the caller goes on: the libraries' imports take ten seconds and 0.6 GB to say so little."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmvp_ray import errors
from mmvp_ray.encoders.backends import resolve_encoder
from mmvp_ray.encoders.spec import EncoderSpec

log = logging.getLogger(__name__)

LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "timm": "timm"}
"""Backends whose library is dear to import; the others resolve as fast as a child starts."""

CHILD = ("-m", "mmvp_ray.encoders.resolving_child")

Resolved = dict[str, EncoderSpec]


def resolve_encoders(
    names: Sequence[str],
    *,
    device: str,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> Resolved:
    """Resolve encoders, those of large libraries in a child process.

    Args:
        names: One or more encoders, each as `resolve_encoder` takes it.
        device: As there.
        dtype: As there.
        trust_remote_code: As there.
        meanwhile: What to do while the child is waited for; not called where there is nothing to wait for.

    Returns:
        The specs by name, in the order of `names`.

    Raises:
        ConfigError, ResourceError, TransientError: as `resolve_encoder`. And what `meanwhile` raises.
    """
    arguments: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    dear = [LIBRARIES[backend] for name in names if (backend := name.partition(":")[0]) in LIBRARIES]
    found = None
    if not all(library in sys.modules for library in dear):
        found = _by_child({"names": list(names), **arguments}, meanwhile)
    return found or {name: resolve_encoder(name, **arguments) for name in names}


def _by_child(asked: dict[str, Any], meanwhile: Callable[[], None]) -> Resolved | None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    with subprocess.Popen(
        [sys.executable, *CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(json.dumps(asked).encode())
            meanwhile()
            return _answer(child)
        finally:
            child.kill()


def _answer(child: subprocess.Popen[bytes]) -> Resolved | None:
    """What the child found; None if it died without a word, then the caller looks itself and sees why."""
    assert child.stdout is not None
    data = child.stdout.read()
    try:
        found = json.loads(data)
    except ValueError:
        log.warning("the process that describes the encoders ended (%s): they are described here", child.wait())
        return None
    if "error" in found:
        raise getattr(errors, found["error"])(found["message"])
    return {name: EncoderSpec.from_dict(spec) for name, spec in found["specs"].items()}
