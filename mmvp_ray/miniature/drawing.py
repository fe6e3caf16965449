"""A pen that draws filled, outlined and striped shapes in an object's own coordinates.

Local coordinates: x forward from -1 to 1, y up from the ground at 0 to about 2; the pen's frame places, scales,
mirrors and squashes them. Page coordinates are pixels of the final 64 px picture, supersampled while drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageChops, ImageDraw

SIZE_PX: Final = 64
SUPERSAMPLING: Final = 3

Colour = tuple[int, int, int]
Point = tuple[float, float]
INK: Final[Colour] = (38, 34, 46)


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An axis-aligned ellipse: centre and radii."""

    x: float
    y: float
    rx: float
    ry: float


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed polygon."""

    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Stroke:
    """A thick open line; width in the same unit as the points."""

    points: tuple[Point, ...]
    width: float


Shape = Ellipse | Polygon | Stroke


def box(left: float, bottom: float, right: float, top: float) -> Polygon:
    """A rectangle as a polygon."""
    return Polygon(((left, bottom), (right, bottom), (right, top), (left, top)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Where local coordinates lie on the page: origin in px, px per unit, mirrored or not, vertical squash."""

    x_px: float = 0.0
    y_px: float = 0.0
    unit_px: float = 1.0
    mirrored: bool = False
    squash: float = 1.0


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws shapes of one frame onto one supersampled page."""

    page: Image.Image
    frame: Frame

    def fill(self, shape: Shape, colour: Colour) -> None:
        """Fill one shape without an outline."""
        self._paint(ImageDraw.Draw(self.page), shape, colour, grow=0.0)

    def outlined(
        self,
        shapes: Sequence[Shape],
        colour: Colour,
        *,
        stripes: Colour | None = None,
        outline_px: float = 0.8,
    ) -> None:
        """Fill the union of shapes, with one ink outline around it and, if asked for, diagonal stripes inside."""
        draw = ImageDraw.Draw(self.page)
        for shape in shapes:
            self._paint(draw, shape, INK, grow=outline_px * SUPERSAMPLING)
        for shape in shapes:
            self._paint(draw, shape, colour, grow=0.0)
        if stripes is not None:
            mask = Image.new("L", self.page.size)
            mask_draw = ImageDraw.Draw(mask)
            for shape in shapes:
                self._paint(mask_draw, shape, 255, grow=0.0)
            self.page.paste(
                stripes,
                mask=ImageChops.multiply(mask, _stripe_mask(self._stripe_period_px())),
            )

    def _stripe_period_px(self) -> int:
        return max(4 * SUPERSAMPLING, round(0.42 * self.frame.unit_px * SUPERSAMPLING))

    def _page_point(self, point: Point) -> Point:
        frame = self.frame
        x = -point[0] if frame.mirrored else point[0]
        return (
            (frame.x_px + x * frame.unit_px) * SUPERSAMPLING,
            (frame.y_px - point[1] * frame.unit_px * frame.squash) * SUPERSAMPLING,
        )

    def _paint(self, draw: ImageDraw.ImageDraw, shape: Shape, colour: Colour | int, grow: float) -> None:
        unit = self.frame.unit_px * SUPERSAMPLING
        if isinstance(shape, Ellipse):
            x, y = self._page_point((shape.x, shape.y))
            rx, ry = shape.rx * unit + grow, shape.ry * unit * self.frame.squash + grow
            draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)
        elif isinstance(shape, Polygon):
            points = [self._page_point(point) for point in shape.points]
            draw.polygon(points, fill=colour)
            if grow > 0:
                draw.line(
                    [*points, points[0], points[1]],
                    fill=colour,
                    width=round(2 * grow),
                    joint="curve",
                )
        else:
            points = [self._page_point(point) for point in shape.points]
            width = shape.width * unit + 2 * grow
            draw.line(points, fill=colour, width=max(1, round(width)), joint="curve")
            for x, y in (points[0], points[-1]):
                draw.ellipse(
                    (x - width / 2, y - width / 2, x + width / 2, y + width / 2),
                    fill=colour,
                )


_STRIPE_MASKS: dict[int, Image.Image] = {}


def _stripe_mask(period_px: int) -> Image.Image:
    """Upright bands over the whole supersampled page, two fifths of each period white."""
    if period_px not in _STRIPE_MASKS:
        side_px = SIZE_PX * SUPERSAMPLING
        mask = Image.new("L", (side_px, side_px))
        draw = ImageDraw.Draw(mask)
        for left in range(0, side_px, period_px):
            draw.rectangle((left, 0, left + round(0.42 * period_px), side_px), fill=255)
        _STRIPE_MASKS[period_px] = mask
    return _STRIPE_MASKS[period_px]
