"""What this machine's processor does in hardware."""

from __future__ import annotations

import functools
import os
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""By which oneDNN, which multiplies for torch, is told what to use at most; the second is the older name
(https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html)."""


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AMX), and ONEDNN_MAX_CPU_ISA does not forbid it."""
    most = next((os.environ[name].upper() for name in ISA_VARIABLES if os.environ.get(name)), "DEFAULT")
    if most not in ("ALL", "DEFAULT") and "AMX" not in most:
        return False
    try:
        return "amx_bf16" in CPU_INFO.read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
