"""How a job starts and ends: defaults < YAML < flags into one config, and one line for whatever went wrong."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, MmvpError

C = TypeVar("C")


def parse(cls: type[C], argv: Sequence[str], *, description: str) -> C:
    """The config of a job: defaults < the file named by --config < flags.

    A flag that may be repeated replaces what the file says. Prints help or a usage error and exits as command-line tools do.

    Raises:
        ConfigError: the file named by --config cannot be used.
    """
    import tyro

    argv, path = _take_config(list(argv))
    default = cls() if path is None else load_yaml(cls, path)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        flag = "--" + field.name.replace("_", "-")
        given = any(arg.split("=", 1)[0].replace("_", "-") == flag for arg in argv)
        if given and isinstance(getattr(default, field.name), tuple):
            default = dataclasses.replace(default, **{field.name: ()})  # type: ignore[type-var]
    style = (
        tyro.conf.OmitArgPrefixes,
        tyro.conf.UseAppendAction,
        tyro.conf.FlagCreatePairsOff,
    )
    return tyro.cli(cls, args=argv, default=default, description=description, config=style)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a job's main and exit: 0 when it ended well, 1 with one line on standard error for an mmvp-ray error.

    Anything that is not an MmvpError is a defect of ours and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except MmvpError as error:
        line = " ".join(str(error).split())
        line = "".join(character if character.isprintable() else "?" for character in line)
        print(f"{type(error).__name__}: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on where this one stopped",
            file=sys.stderr,
        )
        sys.exit(130)


def _take_config(argv: list[str]) -> tuple[list[str], str | None]:
    path = None
    rest: list[str] = []
    while argv:
        arg = argv.pop(0)
        if arg == "--config":
            if not argv:
                raise ConfigError(
                    "expected a file after --config, found nothing; for example --config configs/imagenet.yaml"
                )
            path = argv.pop(0)
        elif arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        else:
            rest.append(arg)
    return rest, path
