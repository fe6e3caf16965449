"""The words of the miniature world: how captions and questions name nouns, places and attribute values."""

from __future__ import annotations

from typing import Final

from mmvp_ray.miniature.world import Scene

PLURALS: Final[dict[str, str]] = {
    "cat": "cats",
    "duck": "ducks",
    "elephant": "elephants",
    "fish": "fish",
    "car": "cars",
    "boat": "boats",
    "house": "houses",
    "teapot": "teapots",
}
PLACE_PHRASES: Final[dict[str, str]] = {
    "beach": "on the beach",
    "meadow": "in a meadow",
    "snow": "in the snow",
    "city": "in the city",
    "night": "at night",
    "room": "in a room",
}
STATE_PHRASES: Final[dict[str, tuple[str, str]]] = {
    "cat": ("asleep", "awake"),
    "duck": ("with its wing folded", "with its wing raised"),
    "elephant": ("with its trunk down", "with its trunk up"),
    "fish": ("with its mouth closed", "with its mouth open"),
    "car": ("with its headlights off", "with its headlights on"),
    "boat": ("with its sail furled", "with its sail set"),
    "house": ("with its door closed", "with its door open"),
    "teapot": ("that is cold", "that is steaming"),
}
"""Noun -> how its state reads at rest and in action."""
COUNT_WORDS: Final[dict[int, str]] = {1: "one", 2: "two", 3: "three"}
BALL_PHRASES: Final[dict[str, str]] = {
    "left": "with a ball on the left",
    "right": "with a ball on the right",
    "above": "with a ball above",
}


def state_phrase(scene: Scene) -> str:
    """How the state of this scene's noun reads, for example "asleep"."""
    return STATE_PHRASES[scene.noun][scene.attributes.state == "action"]


def article(word: str) -> str:
    """The indefinite article that fits the word."""
    return "an" if word[0] in "aeiou" else "a"


def phrase_for(scene: Scene, attribute: str) -> str:
    """Describe the scene's noun with one attribute named, for example "a cat wearing a hat".

    Args:
        scene: the picture.
        attribute: a field of `Attributes`.

    Returns:
        A noun phrase without the place.
    """
    noun, attributes = scene.noun, scene.attributes
    plain = f"{article(noun)} {noun}"
    match attribute:
        case "direction":
            return f"{plain} facing {attributes.direction}"
        case "hat":
            return f"{plain} {'wearing' if attributes.hat else 'without'} a hat"
        case "state":
            return f"{plain} {state_phrase(scene)}"
        case "count":
            word = COUNT_WORDS[attributes.count]
            return f"{word} {noun if attributes.count == 1 else PLURALS[noun]}"
        case "ball":
            return f"{plain} {BALL_PHRASES[attributes.ball]}"
        case "colour":
            return f"a {attributes.colour} {noun}"
        case "surface":
            return f"a {attributes.surface} {noun}"
        case "text":
            return f"{plain} with a sign that says {attributes.text.lower()}"
        case "view":
            return f"{plain} seen from {'above' if attributes.view == 'above' else 'the side'}"
        case _:
            raise KeyError(attribute)
