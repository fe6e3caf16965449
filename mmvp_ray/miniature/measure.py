"""Measure what mining finds in a miniature world against what its attributes say: `python -m mmvp_ray.miniature.measure`.

Shapes: N images, D embedding width, P pairs. All pairs are compared by brute force, which is the oracle of the demo.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE, PATTERNS
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.world import Scene, differing_attributes, sample_scene

NEAR_ABOVE: Final = 0.95
FAR_BELOW: Final = 0.6
_ROWS_PER_BLOCK: Final = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Finds:
    """What the rule finds. Shares lie in 0..1, and are 0 where there is nothing to take a share of.

    num_near: pairs above the near threshold. num_blind: of those, below the far one. near_same_share and
    blind_same_share: share with the same noun and place. blind_differing_share: share of the blind pairs that have the
    same noun and place and differ in an attribute. num_alike_near, num_alike_blind: near and blind pairs equal in noun,
    place and all attributes. pattern_shares: pattern -> share of the blind pairs that differ in it. single_share: share
    of the blind pairs with the same noun and place that differ in exactly one attribute.
    """

    num_images: int
    num_near: int
    num_blind: int
    near_same_share: float
    blind_same_share: float
    blind_differing_share: float
    num_alike_near: int
    num_alike_blind: int
    pattern_shares: dict[str, float]
    single_share: float


def near_pairs(
    near_ND: NDArray[np.float32], far_ND: NDArray[np.float32], near_above: float
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """All pairs i < j above the near threshold.

    Args:
        near_ND: embeddings of the near encoder, any length.
        far_ND: embeddings of the far encoder of the same images.
        near_above: strict lower bound of the near cosine.

    Returns:
        rows_P2 (i < j, ascending), near cosines (P,), far cosines (P,).
    """
    near = near_ND / np.linalg.norm(near_ND, axis=1, keepdims=True)
    far = far_ND / np.linalg.norm(far_ND, axis=1, keepdims=True)
    rows: list[NDArray[np.int64]] = []
    for start in range(0, len(near), _ROWS_PER_BLOCK):
        i, j = np.nonzero(near[start : start + _ROWS_PER_BLOCK] @ near.T > near_above)
        keep = j > i + start
        rows.append(np.stack([i[keep] + start, j[keep]], axis=1))
    rows_P2 = np.concatenate(rows)
    cos = [np.einsum("pd,pd->p", emb[rows_P2[:, 0]], emb[rows_P2[:, 1]]) for emb in (near, far)]
    return rows_P2, cos[0], cos[1]


def measure_finds(
    scenes: Sequence[Scene],
    near_ND: NDArray[np.float32],
    far_ND: NDArray[np.float32],
    *,
    near_above: float = NEAR_ABOVE,
    far_below: float = FAR_BELOW,
) -> Finds:
    """Apply the rule to all pairs and compare the blind ones with the attributes."""
    rows_P2, _, far_P = near_pairs(near_ND, far_ND, near_above)
    is_blind_P = far_P < far_below
    same_P = np.array([_is_same(scenes[i], scenes[j]) for i, j in rows_P2], dtype=bool)
    differing = [differing_attributes(scenes[i].attributes, scenes[j].attributes) for i, j in rows_P2]
    num_differing_P = np.array([len(names) for names in differing], dtype=np.int64)
    alike_P = same_P & (num_differing_P == 0)
    num_blind = int(is_blind_P.sum())
    counts = dict.fromkeys(PATTERNS, 0)
    for k in np.flatnonzero(is_blind_P):
        for name in differing[k]:
            counts[PATTERN_BY_ATTRIBUTE[name]] += 1
    blind_same = is_blind_P & same_P
    return Finds(
        num_images=len(scenes),
        num_near=len(rows_P2),
        num_blind=num_blind,
        near_same_share=_share(same_P.sum(), len(rows_P2)),
        blind_same_share=_share(blind_same.sum(), num_blind),
        blind_differing_share=_share((blind_same & (num_differing_P > 0)).sum(), num_blind),
        num_alike_near=int(alike_P.sum()),
        num_alike_blind=int((alike_P & is_blind_P).sum()),
        pattern_shares={pattern: _share(count, num_blind) for pattern, count in counts.items()},
        single_share=_share((blind_same & (num_differing_P == 1)).sum(), blind_same.sum()),
    )


def _is_same(a: Scene, b: Scene) -> bool:
    return a.noun == b.noun and a.place == b.place


def _share(part: int | np.integer, whole: int | np.integer) -> float:
    return float(part) / float(whole) if whole else 0.0


def render_world(seed: int, num_images: int) -> tuple[list[Scene], NDArray[np.uint8]]:
    """Scenes and pixels_NCHW of the first images of a default world."""
    scenes = [sample_scene(seed, index) for index in range(num_images)]
    return scenes, np.stack([render(scene).transpose(2, 0, 1) for scene in scenes])


def embed_pixels(name: str, pixels_NCHW: NDArray[np.uint8], *, batch_size: int = 256) -> NDArray[np.float32]:
    """Embed pixels with an encoder by its spec string, on the CPU in float32: (N, D)."""
    import torch

    from mmvp_ray.encoders import load_encoder, resolve_encoder

    encoder = load_encoder(resolve_encoder(name, device="cpu"), device="cpu")
    pixels = torch.from_numpy(pixels_NCHW)
    batches = [encoder.embed(pixels[k : k + batch_size]) for k in range(0, len(pixels), batch_size)]
    return np.asarray(torch.cat(batches).numpy(), dtype=np.float32)


def main() -> None:
    """Render a world, embed it with both encoders and print the finds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-images", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--near", default="miniature:clip")
    parser.add_argument("--far", default="miniature:dino")
    parser.add_argument("--near-above", type=float, default=NEAR_ABOVE)
    parser.add_argument("--far-below", type=float, default=FAR_BELOW)
    arguments = parser.parse_args()
    scenes, pixels_NCHW = render_world(arguments.seed, arguments.num_images)
    finds = measure_finds(
        scenes,
        embed_pixels(arguments.near, pixels_NCHW),
        embed_pixels(arguments.far, pixels_NCHW),
        near_above=arguments.near_above,
        far_below=arguments.far_below,
    )
    print(json.dumps(asdict(finds), indent=1))


if __name__ == "__main__":
    main()
