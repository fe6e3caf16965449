"""How a job starts and ends: defaults < YAML < flags into one config, one line for whatever went wrong, and an orderly stop."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn, Protocol, TypeVar

from mmvp_ray import logs
from mmvp_ray.config import load_yaml
from mmvp_ray.errors import ConfigError, MmvpError

C = TypeVar("C")

EXIT_FAILED = 1
EXIT_PIPE = 141
STOP_SECONDS = 20.0
"""An orderly stop that takes longer is cut off: Kubernetes kills a pod 30 seconds after SIGTERM, and Google a spot machine."""
_asked_stop_seconds = 0.0
COMMON_FLAGS = """
Every job also takes --config FILE.yaml (defaults of its flags) and --log-format text|json (lines on standard error for people or, each a
JSON object, for machines; the environment variable MMVP_RAY_LOG_FORMAT holds for jobs that are not given it)."""


def parse(cls: type[C], argv: Sequence[str], *, description: str) -> C:
    """The config of a job: defaults < the file named by --config < flags; --log-format takes effect at once.

    A flag that may be repeated replaces what the file says; over a file a switch has its --no- form as well. Prints help or a usage error
    and exits as command-line tools do.

    Raises:
        ConfigError: the file named by --config cannot be used, or --log-format names no format.
    """
    import tyro

    argv, log_format = _take(list(argv), "--log-format", "a format", "--log-format json")
    if log_format is not None:
        logs.setup(log_format)
    argv, path = _take(argv, "--config", "a file", "--config configs/imagenet.yaml")
    default = cls() if path is None else load_yaml(cls, path)
    default = _emptied(default, {arg.split("=", 1)[0].replace("_", "-") for arg in argv})
    style: tuple[Any, ...] = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction)
    if path is None:
        # Over a file, which may have set it, a flag can be said and unsaid whatever it is there.
        style = (*style, tyro.conf.FlagCreatePairsOff)
    return tyro.cli(
        cls, args=argv, default=default, description=description.rstrip() + "\n" + COMMON_FLAGS, config=style
    )


class Config(Protocol):
    """What parse_checked makes."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""


K = TypeVar("K", bound=Config)
Command = Callable[[list[str]], int]


def parse_checked(cls: type[K], argv: Sequence[str], command: Command) -> K:
    """As `parse`, for a command whose docstring is its help; a value out of range is said before anything is done."""
    config = parse(cls, argv, description=inspect.getdoc(command) or "")
    config.check()
    return config


def said(lines: Iterable[str]) -> int:
    """Print what came out; the exit code of a command that ended well."""
    print("\n".join(lines), flush=True)
    return 0


def choose(commands: Mapping[str, Command], argv: Sequence[str], *, description: str) -> int:
    """Run the command that the first word names, with the words behind it; without one, or for --help, print the description.

    Raises:
        ConfigError: no such command. Whatever the command raises.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(description)
        return 0
    if name not in commands:
        raise ConfigError(
            f"expected one of {', '.join(commands)} as the first word, found {name!r}; --help explains them"
        )
    return commands[name](rest)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a job's main and exit: 0 when it ended well, 1 with one line on standard error for an mmvp-ray error.

    SIGTERM stops it in an orderly way: blocks that must be left are left, and the exit code is 143. Stopping takes at most STOP_SECONDS,
    or what `may_stop_for` asks for; a second signal ends it at once. Ctrl-C does the same with 130. Anything that is not an MmvpError is a
    defect of ours and keeps its traceback.
    """
    with _signals_raise() as stopped_by:
        try:
            logs.setup()
            code = main() or 0
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read the output has gone, as `| head` does: no failure of ours, and nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_PIPE
        except KeyboardInterrupt:
            code = _stopped(stopped_by() or signal.SIGINT)
        except SystemExit as error:
            # While Ray starts, its own handler is in place, which exits with the number of the signal.
            if error.code != signal.SIGTERM:
                raise
            code = _stopped(signal.SIGTERM)
        except Exception as error:
            if (number := stopped_by()) is not None:
                # What a library makes of the interrupt, or a store that is unwell of our leaving, is not what ended the job.
                code = _stopped(number)
            elif isinstance(error, MmvpError):
                line = " ".join(str(error).split())
                line = "".join(character if character.isprintable() else "?" for character in line)
                kind = type(error).__name__
                logs.say("error", f"{kind}: {line}", level="error", error=kind)
                code = EXIT_FAILED
            elif logs.is_json():
                trace = "".join(traceback.format_exception(error))
                logs.say(
                    "error",
                    f"{type(error).__name__}: {error}",
                    level="error",
                    error=type(error).__name__,
                    traceback=trace,
                )
                code = EXIT_FAILED
            else:
                raise
        sys.exit(code)


_WAYS = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}


def _stopped(number: int) -> int:
    logs.say(
        "stopped", f"{_WAYS[signal.Signals(number)]}; the same command goes on where this one stopped", level="warning"
    )
    return 128 + number


@contextlib.contextmanager
def may_stop_for(seconds: float) -> Iterator[None]:
    """Inside this context an orderly stop may take so long, if that is more than STOP_SECONDS."""
    global _asked_stop_seconds
    before, _asked_stop_seconds = _asked_stop_seconds, seconds
    try:
        yield
    finally:
        _asked_stop_seconds = before


@contextlib.contextmanager
def _signals_raise() -> Iterator[Callable[[], int | None]]:
    """Inside this context the first SIGTERM or Ctrl-C raises KeyboardInterrupt in the main thread; gives a function that tells which came.

    KeyboardInterrupt, because that is what Ray's waiting calls pass on from a signal handler. Once one came the handler stays in place: an
    interpreter that is shutting down is cut off as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []

    def cut_off() -> None:
        # In a thread of its own: whoever reads standard error may be gone or slow.
        way = _WAYS[signal.Signals(came[0])]
        message = f"{way} at once: it took too long or came twice; the same command goes on where this one stopped"
        last = threading.Thread(target=logs.say, args=("stopped", message), kwargs={"level": "warning"}, daemon=True)
        last.start()
        last.join(1.0)
        os._exit(128 + came[0])

    def stop(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            cut_off()
        timer = threading.Timer(max(STOP_SECONDS, _asked_stop_seconds), cut_off)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    # One that is ignored, as under nohup or in the background of a shell, stays so.
    before = {number: signal.getsignal(number) for number in _WAYS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield lambda: came[0] if came else None
    finally:
        if not came:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


def _emptied(default: C, given: Set[str]) -> C:
    """The config without what the repeatable flags among `given` would be added to, in its parts too."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(default):  # type: ignore[arg-type]
        value = getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _emptied(value, given)
        elif isinstance(value, tuple) and "--" + field.name.replace("_", "-") in given:
            changes[field.name] = ()
    return dataclasses.replace(default, **changes)  # type: ignore[type-var]


def _take(argv: list[str], flag: str, what: str, example: str) -> tuple[list[str], str | None]:
    """Take a flag with its value out of the words of a command line; the last one counts."""
    found = None
    rest: list[str] = []
    while argv:
        arg = argv.pop(0)
        if arg == flag:
            if not argv:
                raise ConfigError(f"expected {what} after {flag}, found nothing; for example {example}")
            found = argv.pop(0)
        elif arg.startswith(f"{flag}="):
            found = arg.removeprefix(f"{flag}=")
        else:
            rest.append(arg)
    return rest, found
