"""Draw a scene: place, objects, ball and sign, then shift, brightness and noise."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmvp_ray.miniature.drawing import (
    INK,
    SIZE_PX,
    SUPERSAMPLING,
    Colour,
    Ellipse,
    Frame,
    Pen,
    Stroke,
    box,
)
from mmvp_ray.miniature.objects import DRAW_NOUN, PAINT, Look, draw_hat
from mmvp_ray.miniature.places import DRAW_PLACE
from mmvp_ray.miniature.world import Attributes, Scene

MIDDLE_X_PX: Final = 32.0
STAND_Y_PX: Final = 46.0
HORIZON_Y_PX: Final = {"side": 36.0, "above": 9.0}
SQUASH: Final = {"side": 1.0, "above": 0.74}
ROWS: Final[dict[int, tuple[float, tuple[float, ...]]]] = {
    1: (15.5, (0.0,)),
    2: (11.5, (-14.5, 14.5)),
    3: (8.8, (-20.5, 0.0, 20.5)),
}
"""Count -> (px per unit, offsets in x)."""
BALL_PX: Final = {"left": (9.0, 55.5), "right": (55.0, 55.5), "above": (32.0, 7.0)}
NOISE_LEVELS: Final = 4.0

_LETTERS: Final[dict[str, tuple[tuple[tuple[float, float], ...], ...]]] = {
    "H": (((0, 0), (0, 7)), ((4, 0), (4, 7)), ((0, 3.5), (4, 3.5))),
    "I": (((2, 0), (2, 7)), ((0.4, 0), (3.6, 0)), ((0.4, 7), (3.6, 7))),
    "G": (
        (
            (4, 6),
            (3, 7),
            (1, 7),
            (0, 6),
            (0, 1),
            (1, 0),
            (3, 0),
            (4, 1),
            (4, 3),
            (2.4, 3),
        ),
    ),
    "O": (((1, 0), (3, 0), (4, 1), (4, 6), (3, 7), (1, 7), (0, 6), (0, 1), (1, 0)),),
    "N": (((0, 0), (0, 7), (4, 0), (4, 7)),),
}
"""Letter -> strokes in a cell of 4 x 7 px, y up."""


def render(scene: Scene) -> NDArray[np.uint8]:
    """Render one scene.

    Args:
        scene: what the picture shows.

    Returns:
        uint8 RGB array (64, 64, 3), equal for equal scenes.
    """
    nuisance, attributes = scene.nuisance, scene.attributes
    side_px = SIZE_PX * SUPERSAMPLING
    page = Image.new("RGB", (side_px, side_px))
    x_px, y_px = MIDDLE_X_PX + nuisance.shift_x_px, nuisance.shift_y_px
    DRAW_PLACE[scene.place](Pen(page, Frame(x_px=x_px, y_px=HORIZON_Y_PX[attributes.view] + y_px)))
    unit_px, offsets_px = ROWS[attributes.count]
    surface, stripes = PAINT[attributes.colour]
    look = Look(
        surface=surface,
        stripes=stripes if attributes.surface == "striped" else None,
        in_action=attributes.state == "action",
    )
    for offset_px in offsets_px:
        frame = Frame(
            x_px=x_px + offset_px,
            y_px=STAND_Y_PX + y_px,
            unit_px=unit_px * nuisance.scale,
            mirrored=attributes.direction == "left",
            squash=SQUASH[attributes.view],
        )
        pen = Pen(page, frame)
        _draw_shadow(pen, scene)
        hat_at = DRAW_NOUN[scene.noun](pen, look)
        if attributes.hat:
            draw_hat(pen, hat_at)
    _draw_ball(page, attributes, x_px - MIDDLE_X_PX, y_px, nuisance.scale)
    _draw_sign(page, attributes.text, x_px, y_px, nuisance.scale)
    pixels_HWC = np.asarray(page.reduce(SUPERSAMPLING), dtype=np.float32)
    noise = np.random.Generator(np.random.PCG64(nuisance.noise_seed)).random(pixels_HWC.shape, dtype=np.float32)
    noisy = pixels_HWC * np.float32(nuisance.brightness) + (noise - 0.5) * np.float32(2 * NOISE_LEVELS)
    levels_HWC: NDArray[np.uint8] = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    return levels_HWC


def _draw_shadow(pen: Pen, scene: Scene) -> None:
    depth = 0.34 if scene.attributes.view == "above" else 0.12
    shade: Colour = (22, 34, 48) if scene.place == "night" else (96, 92, 96)
    pen.fill(Ellipse(0.0, 0.02, 1.08, depth), shade)


def _draw_ball(page: Image.Image, attributes: Attributes, dx_px: float, dy_px: float, scale: float) -> None:
    x_px, y_px = BALL_PX[attributes.ball]
    pen = Pen(page, Frame(x_px=x_px + dx_px, y_px=y_px + dy_px, unit_px=scale))
    pen.outlined([Ellipse(0, 0, 5, 5)], (255, 140, 30))
    pen.fill(Stroke(((-4.4, 0), (4.4, 0)), 1.3), (255, 250, 240))
    pen.fill(Ellipse(-1.6, 2.2, 1.2, 1.2), (255, 220, 170))


def _draw_sign(page: Image.Image, text: str, x_px: float, y_px: float, scale: float) -> None:
    pen = Pen(page, Frame(x_px=x_px, y_px=56.0 + y_px, unit_px=scale))
    pen.outlined([box(-9.5, -5.2, 9.5, 5.2)], (255, 253, 244), outline_px=1.0)
    for k, letter in enumerate(text):
        left = -6.4 + 8.4 * k
        for stroke in _LETTERS[letter]:
            pen.fill(Stroke(tuple((left + x * 1.1, y - 3.5) for x, y in stroke), 1.5), INK)
