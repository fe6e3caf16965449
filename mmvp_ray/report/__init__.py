"""One mining run as a page to read and a JSON twin to compute with."""

from __future__ import annotations

from mmvp_ray.report.data import MiningReport
from mmvp_ray.report.html import render_html
from mmvp_ray.report.thumbnails import thumbnail

__all__ = ["MiningReport", "render_html", "thumbnail"]
