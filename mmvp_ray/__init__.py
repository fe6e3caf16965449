"""mmvp-ray: find the image pairs that one vision encoder cannot tell apart although another sees them as different."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmvp_ray.pipeline import MineConfig, Run, mine_pairs, open_run

__all__ = ["MineConfig", "Run", "mine_pairs", "open_run"]


def __getattr__(name: str) -> Any:
    # Every worker imports this package; the pipeline and what it needs are loaded by whoever asks for them.
    if name in __all__:
        from mmvp_ray import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
