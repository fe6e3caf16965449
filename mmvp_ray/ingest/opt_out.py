"""Headers by which a server reserves its images: X-Robots-Tag, for everybody or for a named robot, and TDM-Reservation."""

from __future__ import annotations

from email.message import Message

_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_OF_NONE = {"noindex", "nofollow"}
"""What "none" stands for, by Google's published rules."""


def opted_out(headers: Message, *, token: str, directives: tuple[str, ...]) -> str | None:
    """The directive by which these headers reserve the image; None if they do not, or if `directives` is empty.

    Args:
        headers: Of the answer. X-Robots-Tag may stand there several times, each with directives between commas; "name:" before a
            directive makes it, and those that follow in the same header, one for the robot of that name only.
        token: The name of this robot; upper and lower case are the same.
        directives: Those that count.
    """
    if not directives:
        return None
    wanted = {directive.strip().lower() for directive in directives}
    if wanted & _OF_NONE:
        wanted.add("none")
    for value in headers.get_all("X-Robots-Tag", []):
        robot: str | None = None
        for part in str(value).lower().split(","):
            name, found, rest = part.partition(":")
            directive = part.strip()
            if found and name.strip() not in _WITH_VALUE:
                robot, directive = name.strip(), rest.strip()
            if directive in wanted and robot in (None, token.strip().lower()):
                return f"X-Robots-Tag: {directive}"
    if str(headers.get("TDM-Reservation", "")).strip() == "1":
        return "TDM-Reservation: 1"
    return None
