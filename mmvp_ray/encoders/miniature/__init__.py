"""The miniature encoders: two small ViTs that ship with the package and stand in for CLIP and DINOv2 in demos and tests.

Names: "miniature:clip" (with a text tower) and "miniature:dino". docs/miniature.md says what they are and are not.
"""

from __future__ import annotations

from mmvp_ray.encoders.miniature.backend import MiniatureEncoder, load, resolve

__all__ = ["MiniatureEncoder", "load", "resolve"]
