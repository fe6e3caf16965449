"""What this machine's processor does in hardware."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
