"""The six places: sky, ground and a few landmarks, seen from the side or from above (a high horizon)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mmvp_ray.miniature.drawing import INK, Colour, Ellipse, Pen, Polygon, box

WIDTH: Final = 90.0
"""Backgrounds are drawn wider than the page so that a shift never uncovers an edge; local y is px above the horizon."""


def _sky_and_ground(pen: Pen, sky: Colour, ground: Colour) -> None:
    pen.fill(box(-WIDTH, -WIDTH, WIDTH, WIDTH), sky)
    pen.fill(box(-WIDTH, -WIDTH, WIDTH, 0), ground)


def _beach(pen: Pen) -> None:
    _sky_and_ground(pen, (150, 214, 246), (243, 217, 158))
    pen.fill(Ellipse(19, 17, 6, 6), (255, 226, 92))
    pen.fill(box(-WIDTH, -6, WIDTH, 3), (38, 142, 190))
    pen.fill(box(-WIDTH, -8, WIDTH, -6), (240, 250, 252))
    for x, y in ((-24, -17), (24, -13), (-10, -41), (14, -38), (27, -30), (-28, -32)):
        pen.fill(Ellipse(x, y, 2.2, 0.9), (219, 184, 118))


def _meadow(pen: Pen) -> None:
    _sky_and_ground(pen, (178, 228, 250), (122, 196, 88))
    pen.fill(Ellipse(-20, -6, 22, 13), (98, 174, 74))
    pen.fill(Ellipse(22, -7, 26, 12), (84, 158, 68))
    pen.fill(box(-WIDTH, -WIDTH, WIDTH, -4), (122, 196, 88))
    for x, y in ((-27, -13), (-17, -37), (25, -15), (15, -40), (28, -31), (-29, -27)):
        pen.fill(Ellipse(x, y, 1.5, 1.5), (255, 255, 255))
        pen.fill(Ellipse(x, y, 0.7, 0.7), (250, 200, 40))


def _snow(pen: Pen) -> None:
    _sky_and_ground(pen, (186, 204, 222), (244, 248, 252))
    for x, height in ((-26, 17), (-17, 11), (18, 12), (27, 18)):
        for k in range(2):
            bottom = k * height * 0.36
            half = 6 - 2 * k
            pen.fill(
                Polygon(
                    (
                        (x - half, bottom),
                        (x + half, bottom),
                        (x, bottom + height * 0.62),
                    )
                ),
                (46, 104, 86),
            )
    for x, y in ((-22, -14), (23, -14), (-14, -40), (17, -41), (28, -29), (-28, -31)):
        pen.fill(Ellipse(x, y, 3.2, 0.9), (206, 220, 236))


def _city(pen: Pen) -> None:
    _sky_and_ground(pen, (226, 214, 205), (122, 124, 132))
    skyline = (
        (-31, 9, 24),
        (-21, 8, 15),
        (-12, 9, 20),
        (9, 9, 17),
        (19, 10, 27),
        (30, 8, 14),
    )
    for x, width, height in skyline:
        pen.fill(box(x - width / 2, 0, x + width / 2, height), (150, 132, 142))
        for row in range(2, height - 3, 5):
            for column in (-2.4, 1.0):
                pen.fill(box(x + column, row, x + column + 1.8, row + 2.4), (250, 224, 140))
    pen.fill(box(-WIDTH, -4, WIDTH, 0), (186, 184, 184))
    for x in range(-42, 43, 14):
        pen.fill(box(x - 3.5, -30, x + 3.5, -28.2), (246, 242, 230))


def _night(pen: Pen) -> None:
    _sky_and_ground(pen, (28, 32, 78), (46, 66, 82))
    pen.fill(Ellipse(-20, 18, 5.5, 5.5), (250, 244, 205))
    pen.fill(Ellipse(-17.4, 19.5, 4.8, 4.8), (28, 32, 78))
    for x, y in (
        (-29, 28),
        (-8, 24),
        (3, 31),
        (12, 20),
        (21, 27),
        (28, 13),
        (-28, 8),
        (26, 33),
    ):
        pen.fill(Ellipse(x, y, 0.8, 0.8), (255, 252, 224))
    pen.fill(Ellipse(-24, -4, 20, 7), (36, 54, 72))
    pen.fill(Ellipse(24, -4, 18, 8), (36, 54, 72))
    pen.fill(box(-WIDTH, -WIDTH, WIDTH, -3), (46, 66, 82))
    for x, y in ((-25, -14), (24, -12), (-15, -40), (16, -40), (29, -30), (-29, -29)):
        pen.fill(Ellipse(x, y, 2.6, 0.8), (66, 92, 104))


def _room(pen: Pen) -> None:
    _sky_and_ground(pen, (247, 208, 200), (190, 128, 82))
    pen.fill(box(-WIDTH, 0, WIDTH, 2), (252, 240, 228))
    pen.outlined([box(-28, 10, -12, 25)], (168, 220, 246), outline_px=1.0)
    pen.fill(box(-20.6, 10, -19.4, 25), INK)
    pen.fill(box(-28, 17, -12, 18), INK)
    pen.outlined([box(14, 12, 26, 22)], (252, 244, 210), outline_px=1.0)
    pen.fill(Ellipse(20, 17, 3, 3), (232, 120, 110))
    for y in (-7, -15, -25, -37, -49):
        pen.fill(box(-WIDTH, y - 0.5, WIDTH, y + 0.4), (158, 100, 62))


DRAW_PLACE: Final[dict[str, Callable[[Pen], None]]] = {
    "beach": _beach,
    "meadow": _meadow,
    "snow": _snow,
    "city": _city,
    "night": _night,
    "room": _room,
}
"""Place -> the function that draws it, with the pen's origin at the middle of the horizon and 1 px per unit."""
