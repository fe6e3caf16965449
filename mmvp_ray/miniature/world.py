"""What a picture of the miniature world shows: a noun, a place, nine switchable attributes and some nuisance.

A scene is a pure function of (seed, index): it depends neither on the process nor on the order in which scenes are
asked for. Only `Generator.random` is drawn from, whose stream numpy keeps stable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np

from mmvp_ray.errors import ConfigError
from mmvp_ray.miniature.patterns import PATTERN_BY_ATTRIBUTE

NOUNS: Final = ("cat", "duck", "elephant", "fish", "car", "boat", "house", "teapot")
PLACES: Final = ("beach", "meadow", "snow", "city", "night", "room")

VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "direction": ("left", "right"),
    "hat": (False, True),
    "state": ("rest", "action"),
    "count": (1, 2, 3),
    "ball": ("left", "right", "above"),
    "colour": ("red", "blue", "yellow", "purple"),
    "surface": ("plain", "striped"),
    "text": ("HI", "GO", "NO"),
    "view": ("side", "above"),
}
"""Every value of every attribute."""

USUAL_PROBABILITY: Final = 0.8
"""How often an attribute has its usual value in a default world: most pairs then differ in a few attributes only."""

_USUAL_STEP: Final[dict[str, tuple[int, int]]] = {
    "direction": (1, 1),
    "state": (1, 0),
    "ball": (1, 1),
    "colour": (1, 2),
    "text": (2, 1),
}
"""Attribute -> how far its usual value moves on per noun and per place; the others keep the first value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """One value for each of the nine patterns. `VALUES` lists what each field may hold."""

    direction: Literal["left", "right"] = "left"
    hat: bool = False
    state: Literal["rest", "action"] = "rest"
    count: Literal[1, 2, 3] = 1
    ball: Literal["left", "right", "above"] = "left"
    colour: Literal["red", "blue", "yellow", "purple"] = "red"
    surface: Literal["plain", "striped"] = "plain"
    text: Literal["HI", "GO", "NO"] = "HI"
    view: Literal["side", "above"] = "side"

    def __post_init__(self) -> None:
        """Refuse a value that the renderer cannot draw."""
        for name, known in VALUES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"Attributes.{name} expects one of {list(known)}; got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Nuisance:
    """Continuous variation that means nothing, so that no two pictures are equal.

    shift_x_px, shift_y_px: of the whole picture, within +-2 px. scale: of objects, ball and sign, 0.94 to 1.06.
    brightness: factor on all pixels, 0.92 to 1.08. noise_seed: of the pixel noise (+-4 levels).
    """

    shift_x_px: float = 0.0
    shift_y_px: float = 0.0
    scale: float = 1.0
    brightness: float = 1.0
    noise_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that determines one picture."""

    noun: str
    place: str
    attributes: Attributes = Attributes()
    nuisance: Nuisance = Nuisance()

    def __post_init__(self) -> None:
        """Refuse a noun or place that the renderer cannot draw."""
        if self.noun not in NOUNS:
            raise ConfigError(f"Scene.noun expects one of {list(NOUNS)}; got {self.noun!r}")
        if self.place not in PLACES:
            raise ConfigError(f"Scene.place expects one of {list(PLACES)}; got {self.place!r}")


def scene_generator(seed: int, index: int, stream: int = 0) -> np.random.Generator:
    """Random numbers that belong to one picture: the same for (seed, index, stream) everywhere."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, stream])))


def usual_attributes(noun: str, place: str) -> Attributes:
    """Give the attributes that most pictures of this noun in this place have (each place has its own habits)."""
    values: dict[str, Any] = {}
    for name, known in VALUES.items():
        per_noun, per_place = _USUAL_STEP.get(name, (0, 0))
        values[name] = known[(per_noun * NOUNS.index(noun) + per_place * PLACES.index(place)) % len(known)]
    return Attributes(**values)


def sample_scene(seed: int, index: int, *, usual_probability: float = USUAL_PROBABILITY) -> Scene:
    """Draw the scene of one picture.

    Args:
        seed: of the world, >= 0.
        index: of the picture in the world, >= 0.
        usual_probability: in 0..1, that an attribute has its usual value; else one of its others, uniformly.

    Returns:
        The scene; noun and place are uniform.
    """
    uniform = scene_generator(seed, index).random(32)
    noun = NOUNS[int(uniform[0] * len(NOUNS))]
    place = PLACES[int(uniform[1] * len(PLACES))]
    usual = usual_attributes(noun, place)
    values: dict[str, Any] = {}
    for k, (name, known) in enumerate(VALUES.items()):
        usual_value = getattr(usual, name)
        others = [value for value in known if value != usual_value]
        is_usual = uniform[2 + 2 * k] < usual_probability
        values[name] = usual_value if is_usual else others[int(uniform[3 + 2 * k] * len(others))]
    return Scene(
        noun=noun,
        place=place,
        attributes=Attributes(**values),
        nuisance=Nuisance(
            shift_x_px=4.0 * float(uniform[24]) - 2.0,
            shift_y_px=4.0 * float(uniform[25]) - 2.0,
            scale=0.94 + 0.12 * float(uniform[26]),
            brightness=0.92 + 0.16 * float(uniform[27]),
            noise_seed=int(uniform[28] * 2**32),
        ),
    )


def differing_attributes(a: Attributes, b: Attributes) -> tuple[str, ...]:
    """Names of the attributes in which two pictures differ, in the paper's order of patterns."""
    return tuple(name for name in PATTERN_BY_ATTRIBUTE if getattr(a, name) != getattr(b, name))


def scene_to_record(scene: Scene) -> dict[str, Any]:
    """Flatten noun, place and attributes into JSON types (nuisance is left out: it means nothing)."""
    attributes = {field.name: getattr(scene.attributes, field.name) for field in fields(Attributes)}
    return {"object": scene.noun, "scene": scene.place, **attributes}


def scene_from_record(record: Mapping[str, Any]) -> Scene:
    """Rebuild a scene (without nuisance) from `scene_to_record`'s mapping; further keys are ignored.

    Raises:
        ConfigError: a value that is not in the world; a missing key is named.
    """
    missing = [key for key in ("object", "scene", *VALUES) if key not in record]
    if missing:
        raise ConfigError(f"a miniature record needs the keys object, scene and all attributes; missing {missing}")
    return Scene(
        noun=record["object"],
        place=record["scene"],
        attributes=Attributes(**{name: record[name] for name in VALUES}),
    )
