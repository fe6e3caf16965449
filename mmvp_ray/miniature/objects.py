"""The eight nouns: each drawn facing forward (+x), at rest or in action, in one colour, plain or striped.

Every drawing stands on y = 0, spans about -1..1 in x, and returns where a hat sits (its lower middle).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmvp_ray.miniature.drawing import (
    INK,
    Colour,
    Ellipse,
    Pen,
    Point,
    Polygon,
    Shape,
    Stroke,
    box,
)

WHITE: Final[Colour] = (255, 255, 255)
GLASS: Final[Colour] = (204, 236, 250)
BEAK: Final[Colour] = (246, 150, 40)
BLACK: Final[Colour] = (26, 22, 30)

PAINT: Final[dict[str, tuple[Colour, Colour]]] = {
    "red": ((226, 62, 56), (252, 206, 196)),
    "blue": ((52, 112, 220), (196, 222, 255)),
    "yellow": ((250, 200, 44), (142, 92, 20)),
    "purple": ((148, 74, 184), (232, 206, 250)),
}
"""Colour's name -> (surface, stripes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How one object is painted: surface colour, stripe colour or None, and whether it is in action."""

    surface: Colour
    stripes: Colour | None
    in_action: bool


def _eye(pen: Pen, x: float, y: float, radius: float = 0.15) -> None:
    pen.fill(Ellipse(x, y, radius, radius), WHITE)
    pen.fill(Ellipse(x + radius * 0.3, y, radius * 0.58, radius * 0.58), BLACK)


def _cat(pen: Pen, look: Look) -> Point:
    """Rest: asleep, lying with closed eyes. Action: awake, standing on its legs with its tail up."""
    lift = 0.55 if look.in_action else 0.0
    tail = (
        Stroke(((-0.72, 0.95), (-0.95, 1.3), (-0.82, 1.75)), 0.17)
        if look.in_action
        else Stroke(((-0.75, 0.25), (-1.0, 0.12), (-0.6, 0.08)), 0.17)
    )
    shapes: list[Shape] = [
        tail,
        Ellipse(-0.1, lift + 0.42, 0.74, 0.42),
        Ellipse(0.55, lift + 0.78, 0.43, 0.4),
    ]
    shapes += [
        Polygon(((0.2, lift + 0.95), (0.22, lift + 1.45), (0.55, lift + 1.1))),
        Polygon(((0.55, lift + 1.1), (0.9, lift + 1.45), (0.92, lift + 0.92))),
    ]
    if look.in_action:
        shapes += [box(x, 0.0, x + 0.2, 0.8) for x in (-0.72, -0.4, 0.18, 0.44)]
    pen.outlined(shapes, look.surface, stripes=look.stripes)
    if look.in_action:
        _eye(pen, 0.42, 1.38, 0.14)
        _eye(pen, 0.76, 1.38, 0.14)
    else:
        for x in (0.4, 0.75):
            pen.fill(Stroke(((x - 0.12, 0.8), (x, 0.73), (x + 0.12, 0.8)), 0.07), BLACK)
    pen.fill(Ellipse(0.66, lift + 0.64, 0.09, 0.06), (250, 170, 180))
    return (0.56, lift + 1.12)


def _duck(pen: Pen, look: Look) -> Point:
    """Rest: wing folded. Action: wing raised."""
    for x in (-0.15, 0.15):
        pen.fill(Stroke(((x, 0.4), (x, 0.06), (x + 0.18, 0.06)), 0.1), BEAK)
    pen.outlined([Polygon(((0.8, 1.5), (1.16, 1.36), (0.8, 1.22)))], BEAK)
    body: list[Shape] = [
        Ellipse(-0.08, 0.68, 0.78, 0.44),
        Ellipse(0.55, 1.38, 0.36, 0.36),
        Polygon(((0.2, 0.8), (0.3, 1.4), (0.85, 1.3), (0.66, 0.7))),
        Polygon(((-0.95, 1.08), (-0.78, 0.5), (-0.4, 0.8))),
    ]
    pen.outlined(body, look.surface, stripes=look.stripes)
    if look.in_action:
        pen.outlined(
            [
                Polygon(
                    (
                        (-0.4, 0.75),
                        (-0.85, 1.78),
                        (-0.4, 1.7),
                        (-0.08, 1.5),
                        (0.2, 0.75),
                    )
                )
            ],
            WHITE,
        )
    else:
        pen.outlined([Ellipse(-0.2, 0.7, 0.42, 0.22)], WHITE, outline_px=0.6)
    _eye(pen, 0.62, 1.46, 0.14)
    return (0.52, 1.7)


def _elephant(pen: Pen, look: Look) -> Point:
    """Rest: trunk down. Action: trunk up, spraying."""
    trunk = (
        Stroke(((0.72, 1.05), (1.0, 1.2), (1.02, 1.75)), 0.24)
        if look.in_action
        else Stroke(((0.72, 1.1), (0.98, 0.8), (0.96, 0.16)), 0.24)
    )
    body: list[Shape] = [
        trunk,
        Ellipse(-0.22, 0.95, 0.72, 0.56),
        Ellipse(0.5, 1.18, 0.4, 0.42),
    ]
    body += [box(x, 0.0, x + 0.3, 0.8) for x in (-0.78, 0.05)]
    body += [Stroke(((-0.88, 1.05), (-1.02, 0.6)), 0.08)]
    pen.outlined(body, look.surface, stripes=look.stripes)
    pen.outlined([Ellipse(0.2, 1.14, 0.27, 0.36)], (250, 196, 200), outline_px=0.6)
    pen.fill(Polygon(((0.66, 0.92), (0.98, 0.82), (0.72, 0.78))), WHITE)
    _eye(pen, 0.62, 1.32, 0.12)
    if look.in_action:
        for x, y in ((0.86, 1.98), (1.1, 2.06), (1.24, 1.86)):
            pen.fill(Ellipse(x, y, 0.11, 0.13), (120, 210, 255))
    return (0.45, 1.56)


def _fish(pen: Pen, look: Look) -> Point:
    """Rest: mouth closed. Action: mouth wide open."""
    tail = Polygon(((-0.5, 0.8), (-1.05, 1.3), (-0.92, 0.8), (-1.05, 0.28)))
    fin = Polygon(((-0.3, 1.2), (-0.15, 1.66), (0.3, 1.25)))
    body = Ellipse(0.12, 0.8, 0.8, 0.54)
    pen.outlined([tail, fin, body], look.surface, stripes=look.stripes)
    pen.outlined([Polygon(((-0.05, 0.78), (-0.4, 0.62), (-0.32, 0.95)))], WHITE, outline_px=0.5)
    if look.in_action:
        pen.outlined(
            [Polygon(((0.45, 0.7), (1.02, 1.06), (1.02, 0.34)))],
            (120, 16, 30),
            outline_px=0.6,
        )
    else:
        pen.fill(Stroke(((0.66, 0.58), (0.86, 0.62)), 0.07), BLACK)
    _eye(pen, 0.42, 1.04, 0.16)
    return (0.28, 1.3)


def _car(pen: Pen, look: Look) -> Point:
    """Rest: headlights off. Action: headlights on."""
    if look.in_action:
        pen.fill(
            Polygon(((0.85, 0.72), (1.62, 1.02), (1.62, 0.12), (0.85, 0.5))),
            (255, 246, 150),
        )
    body: list[Shape] = [
        Polygon(((-0.98, 0.28), (-0.98, 0.8), (1.0, 0.7), (1.0, 0.28))),
        Polygon(((-0.82, 0.75), (-0.66, 1.3), (0.2, 1.3), (0.6, 0.74))),
    ]
    pen.outlined(body, look.surface, stripes=look.stripes)
    pen.fill(Polygon(((-0.6, 0.8), (-0.52, 1.16), (-0.2, 1.16), (-0.2, 0.8))), GLASS)
    pen.fill(Polygon(((-0.08, 0.8), (-0.08, 1.16), (0.14, 1.16), (0.4, 0.8))), GLASS)
    lamp = (255, 250, 180) if look.in_action else (120, 116, 110)
    pen.outlined([Ellipse(0.88, 0.6, 0.12, 0.12)], lamp, outline_px=0.5)
    for x in (-0.55, 0.55):
        pen.fill(Ellipse(x, 0.24, 0.26, 0.26), INK)
        pen.fill(Ellipse(x, 0.24, 0.11, 0.11), (214, 214, 222))
    return (-0.24, 1.3)


def _boat(pen: Pen, look: Look) -> Point:
    """Rest: sail furled. Action: sail set."""
    pen.fill(Stroke(((-0.05, 0.5), (-0.05, 1.9)), 0.09), (110, 70, 40))
    if look.in_action:
        pen.outlined([Polygon(((0.04, 0.72), (0.04, 1.84), (0.9, 0.78)))], (255, 252, 240))
    else:
        pen.outlined([Stroke(((0.0, 0.78), (0.72, 0.84)), 0.13)], (255, 252, 240), outline_px=0.6)
    hull = Polygon(
        (
            (-0.95, 0.66),
            (-0.72, 0.06),
            (0.6, 0.06),
            (1.08, 0.72),
            (0.6, 0.6),
            (-0.6, 0.58),
        )
    )
    cabin = box(-0.72, 0.5, -0.25, 0.98)
    pen.outlined([hull, cabin], look.surface, stripes=look.stripes)
    pen.fill(Ellipse(-0.48, 0.76, 0.12, 0.12), GLASS)
    return (-0.48, 0.98)


def _house(pen: Pen, look: Look) -> Point:
    """Rest: door closed. Action: door open."""
    pen.outlined([box(-0.66, 1.0, -0.4, 1.74)], (150, 96, 84))
    pen.outlined([box(-0.82, 0.0, 0.82, 1.0)], look.surface, stripes=look.stripes)
    pen.outlined([Polygon(((-1.02, 0.96), (-0.05, 1.7), (1.02, 0.96)))], (92, 84, 100))
    pen.outlined([box(-0.62, 0.42, -0.18, 0.8)], (255, 240, 170), outline_px=0.6)
    pen.fill(box(-0.43, 0.42, -0.37, 0.8), INK)
    if look.in_action:
        pen.outlined([box(0.12, 0.0, 0.56, 0.74)], BLACK, outline_px=0.6)
        pen.outlined(
            [Polygon(((0.56, 0.74), (0.56, 0.0), (1.0, -0.14), (1.0, 0.62)))],
            (250, 246, 236),
            outline_px=0.6,
        )
    else:
        pen.outlined([box(0.12, 0.0, 0.56, 0.74)], (250, 246, 236), outline_px=0.6)
        pen.fill(Ellipse(0.24, 0.36, 0.07, 0.07), BLACK)
    return (-0.02, 1.62)


def _teapot(pen: Pen, look: Look) -> Point:
    """Rest: cold. Action: steaming."""
    if look.in_action:
        for x, y, radius in ((1.0, 1.4, 0.15), (1.14, 1.68, 0.19), (0.96, 1.98, 0.23)):
            pen.fill(Ellipse(x, y, radius, radius), (250, 250, 255))
    handle = Stroke(((-0.55, 1.02), (-0.98, 0.98), (-1.0, 0.55), (-0.58, 0.36)), 0.13)
    spout = Polygon(
        (
            (0.4, 0.34),
            (0.88, 0.9),
            (0.82, 1.12),
            (1.08, 1.12),
            (1.02, 0.78),
            (0.62, 0.2),
        )
    )
    body = Ellipse(0.0, 0.62, 0.68, 0.6)
    pen.outlined([handle, spout, body], look.surface, stripes=look.stripes)
    pen.outlined([Ellipse(0.0, 1.18, 0.4, 0.12)], look.surface)
    pen.outlined([Ellipse(0.0, 1.38, 0.12, 0.12)], (250, 240, 220), outline_px=0.6)
    return (0.0, 1.36)


DRAW_NOUN: Final[dict[str, Callable[[Pen, Look], Point]]] = {
    "cat": _cat,
    "duck": _duck,
    "elephant": _elephant,
    "fish": _fish,
    "car": _car,
    "boat": _boat,
    "house": _house,
    "teapot": _teapot,
}
"""Noun -> the function that draws it and returns the hat's place."""


def draw_hat(pen: Pen, at: Point) -> None:
    """Put a green party hat with a white bobble where an object said that a hat sits."""
    x, y = at
    pen.outlined(
        [Polygon(((x - 0.34, y - 0.04), (x + 0.34, y - 0.04), (x, y + 0.68)))],
        (40, 176, 96),
    )
    pen.outlined([Ellipse(x, y + 0.7, 0.14, 0.14)], WHITE, outline_px=0.5)
    pen.fill(Stroke(((x - 0.3, y + 0.02), (x + 0.3, y + 0.02)), 0.1), WHITE)
