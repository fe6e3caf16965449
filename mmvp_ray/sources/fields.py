"""What a record says of its image: caption, label, url and licence out of side files and columns; the rest kept as JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_SIDECAR_BYTES = 1 << 20
MAX_TEXT_CHARS = 8_192
MAX_METADATA_CHARS = 65_536

CAPTION_KEYS = ("caption", "text", "TEXT")
LABEL_KEYS = ("label", "class_name", "cls")
URL_KEYS = ("url", "URL")
LICENSE_KEYS = ("license", "LICENSE", "licence")

_WNID = re.compile(r"n\d{8}", re.ASCII)


def fields_of(record: Mapping[str, Any]) -> dict[str, str | None]:
    """The Sample fields caption, label, url, license and metadata of a record; what is no known field goes to metadata."""
    rest = dict(record)
    taken = {
        "caption": _take(rest, CAPTION_KEYS),
        "label": _take(rest, LABEL_KEYS),
        "url": _take(rest, URL_KEYS),
        "license": _take(rest, LICENSE_KEYS),
    }
    rest = {key: value for key, value in rest.items() if value is not None}
    text = json.dumps(rest, sort_keys=True, default=str) if rest else None
    if text is not None and len(text) > MAX_METADATA_CHARS:
        text = json.dumps({"left_out": f"{len(text)} characters of metadata, more than {MAX_METADATA_CHARS}"})
    return {**taken, "metadata": text}


def wnid_of(name: str) -> str | None:
    """The WordNet id that a class folder (n01440764) or an image of ImageNet (n01440764_18.JPEG) is named by; None for other names."""
    start = re.split(r"[_.]", name.rsplit("/", 1)[-1], maxsplit=1)[0]
    return start if _WNID.fullmatch(start) else None


def utf8(name: str) -> str:
    """A file's or member's name as text that tables can hold: bytes of it that are no UTF-8 become the replacement character."""
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")


def text_of(data: bytes) -> str:
    """Text of a side file; what is no UTF-8 is replaced, so that no record is lost for its caption."""
    return data[: 4 * MAX_TEXT_CHARS].decode("utf-8", errors="replace").replace("\x00", "").strip()[:MAX_TEXT_CHARS]


def _take(rest: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    for key in keys:
        value = rest.get(key)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value == value and str(value) != "":
            del rest[key]
            return text_of(str(value).encode("utf-8", errors="replace"))
    return None
