"""Drawn scenes that differ in one thing, so that pairs can be told apart by eye in screenshots and by pixels in tests."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from mmvp_ray.annotate.importing import FoundPair, Picture

SIZE = (640, 480)


def scene(number: int, *, is_other: bool) -> bytes:
    """A house under a sky; the other picture of a number has another door, window, sun or tree."""
    hue = (number * 47) % 360
    image = Image.new("RGB", SIZE, f"hsl({(hue + 180) % 360}, 45%, 82%)")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 330, *SIZE), fill=f"hsl({(hue + 60) % 360}, 30%, 55%)")
    sun_x = 110 if is_other and number % 4 == 0 else 540
    draw.ellipse((sun_x - 45, 50, sun_x + 45, 140), fill="#ffd75e")
    draw.rectangle((200, 210, 420, 390), fill=f"hsl({hue}, 35%, 62%)", outline="#333", width=3)
    draw.polygon(((180, 210), (310, 110), (440, 210)), fill=f"hsl({hue}, 45%, 38%)")
    door = "#b33a2b" if is_other and number % 4 == 1 else "#2b5fb3"
    draw.rectangle((285, 300, 340, 390), fill=door)
    for window in range(1 if is_other and number % 4 == 2 else 2):
        draw.rectangle((220 + 130 * window, 235, 265 + 130 * window, 280), fill="#fff3bd", outline="#333", width=2)
    trunk_x = 80 if is_other and number % 4 == 3 else 510
    draw.rectangle((trunk_x, 300, trunk_x + 24, 400), fill="#6b4a2f")
    draw.ellipse((trunk_x - 48, 190, trunk_x + 72, 320), fill="#4d7d45")
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def picture(number: int, *, is_other: bool = False, **known: object) -> Picture:
    """A scene with what is known of it."""
    side = "b" if is_other else "a"
    facts: dict[str, object] = {
        "uri": f"s3://pictures/{number}{side}.jpg",
        "member": f"00000/{number:05d}{side}.jpg",
        "caption": f"A small house with a tree beside it, number {number}",
        "url": f"https://example.org/houses/{number}{side}.jpg",
        "license": "cc-by-4.0",
    }
    return Picture(data=scene(number, is_other=is_other), **(facts | known))  # type: ignore[arg-type]


def pair(number: int, **known: object) -> FoundPair:
    """A pair of scenes; `known` is said of both pictures."""
    return FoundPair(
        rank=number,
        cos_near=0.985 - number / 500,
        cos_far=0.41 + number / 300,
        a=picture(number, **known),
        b=picture(number, is_other=True, **known),
    )
