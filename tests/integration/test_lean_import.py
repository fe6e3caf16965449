"""Workers that end as Ray's do leave no folders of libraries behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import contextlib, os, sys
from mmvp_ray.errors import ConfigError
with contextlib.suppress(ConfigError):
    {uses_it}
assert {library!r} in sys.modules
assert "wandb" not in sys.modules
os._exit(0)
"""


@pytest.mark.parametrize(
    ("library", "uses_it"),
    [
        ("open_clip", "from mmvp_ray.encoders.open_clip_files import locate; locate('no-such-model', name='it')"),
        ("timm", "from mmvp_ray.encoders.timm_files import locate; locate('no-such-model', name='it')"),
        ("img2dataset", "from mmvp_ray.ingest.laion_writer import import_img2dataset; import_img2dataset()"),
    ],
)
def test_nothing_is_left(tmp_path: Path, library: str, uses_it: str) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(library=library, uses_it=uses_it)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # torch keeps one folder for all processes of a user.
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")] == []
