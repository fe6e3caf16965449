"""Items to probe from the miniature world: which way does the object face? A mirrored picture makes the other word true."""

from __future__ import annotations

import io
import json

from PIL import Image

from mmvp_ray import storage
from mmvp_ray.miniature.render import render
from mmvp_ray.miniature.world import sample_scene

ITEMS_FILE = "items.jsonl"
_OTHER = {"left": "right", "right": "left"}


def write_probe_items(folder: str, *, num_items: int, seed: int = 0) -> str:
    """Write pictures and their file of items below `folder`; the same seed gives the same bytes.

    Args:
        folder: path or URL.
        num_items: pictures.
        seed: of the world.

    Returns:
        Where the file of items lies.
    """
    lines = []
    for index in range(num_items):
        scene = sample_scene(seed, index)
        png = io.BytesIO()
        Image.fromarray(render(scene)).save(png, "PNG")
        storage.write_bytes(storage.join(folder, "images", f"{index:05d}.png"), png.getvalue())
        facing = scene.attributes.direction
        lines.append(
            {
                "key": f"{index:05d}",
                "image": f"images/{index:05d}.png",
                "sentence": f"a {scene.noun} facing {facing}",
                "context": f"a picture of a {scene.place}",
                "words": [{"word": facing, "swapped": _OTHER[facing]}],
            }
        )
    uri = storage.join(folder, ITEMS_FILE)
    storage.write_bytes(uri, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return uri
