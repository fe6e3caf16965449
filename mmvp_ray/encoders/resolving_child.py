"""The child process of mmvp_ray.encoders.resolving: reads names and options from stdin, answers with their specs or an error of ours."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from typing import Any

from mmvp_ray.encoders.backends import resolve_encoder
from mmvp_ray.errors import MmvpError


def main() -> None:
    """Answer once."""
    # Ctrl-C goes to parent and child: one of them says so.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What libraries print must not get into the answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    asked = json.load(sys.stdin)
    names = asked.pop("names")
    found: dict[str, Any]
    try:
        found = {"specs": {name: dataclasses.asdict(resolve_encoder(name, **asked)) for name in names}}
    except MmvpError as error:
        found = {"error": type(error).__name__, "message": str(error)}
    with answers:
        answers.write(json.dumps(found).encode())


if __name__ == "__main__":
    main()
