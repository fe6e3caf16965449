"""Which attribute of the miniature world switches each of the paper's nine visual patterns."""

from __future__ import annotations

from typing import Final

from mmvp_ray.benchmark.patterns import PATTERNS

__all__ = ["PATTERNS", "PATTERN_BY_ATTRIBUTE"]

_ATTRIBUTES: Final = ("direction", "hat", "state", "count", "ball", "colour", "surface", "text", "view")

PATTERN_BY_ATTRIBUTE: Final[dict[str, str]] = dict(zip(_ATTRIBUTES, PATTERNS, strict=True))
"""Field of `Attributes` -> canonical name of the pattern, in the paper's order."""
