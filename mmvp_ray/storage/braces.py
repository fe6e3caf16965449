"""Texts with {a..b} ranges and {x,y} choices, as in the names of webdataset shards."""

from __future__ import annotations

import re

from mmvp_ray.errors import ConfigError

MAX_BRACE_TEXTS = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """All texts that {a..b} number ranges (zero-padded like their ends) and {x,y} choices in `pattern` stand for, in order."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    head, body, tail = pattern[: match.start()], match.group(1), pattern[match.end() :]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", body)
    if numbers:
        first, last = numbers.groups()
        if int(last) < int(first):
            raise ConfigError(
                f"expected a rising range in {{{body}}}, found one that falls, in {pattern}; write the smaller number first"
            )
        if int(last) - int(first) >= MAX_BRACE_TEXTS:
            raise ConfigError(
                f"expected at most {MAX_BRACE_TEXTS:,} numbers in {{{body}}}, found more, in {pattern}; name a folder or a glob instead"
            )
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    elif "," in body:
        choices = body.split(",")
    else:
        raise ConfigError(
            f"expected {{a..b}} with two numbers or {{x,y}}, found {{{body}}} in {pattern}; mend the braces"
        )
    return [text for choice in choices for text in expand_braces(head + choice + tail)]
