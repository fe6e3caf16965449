"""Ray's start, on this machine or at a cluster: quiet, tried again once, and one line that says why it failed."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmvp_ray import logs
from mmvp_ray.errors import ConfigError, MmvpError, ResourceError

log = logging.getLogger(__name__)

NUM_START_ATTEMPTS = 2
"""Ray's start is slow on a busy machine: it is tried again once."""
START_SECONDS = 90
"""Ray waits so long for its first node (raylet_start_wait_time_s, 30 by default, which a machine with many more tasks than cores exceeds)."""


def start_ray(address: str | None, *, joins_cluster: bool) -> None:
    """Connect this process to a cluster, or start one here.

    Args:
        address: A running cluster ("auto", "host:port"), or "local" or None for one of its own.
        joins_cluster: Whether the address is that of a cluster that somebody else started.

    Raises:
        ResourceError: Ray did not start. ConfigError: no cluster answers at the address, or it is of a kind that cannot be joined.
    """
    if address is not None and "://" in address:
        # Ray Data needs a driver that is part of the cluster, which a Ray client (ray://) is not; http:// is the dashboard's.
        raise ConfigError(
            f"expected auto or host:port, found {address} in --address or RAY_ADDRESS; run the job on the cluster: "
            "`ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/...`"
        )
    is_quiet = not joins_cluster or logs.is_json()
    _set_environment(joins_cluster=joins_cluster, is_quiet=is_quiet)
    import ray

    keep_standard_output()
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": joins_cluster}
    if not joins_cluster:
        options |= {"include_dashboard": False}
        if compiles_in_every_process():
            log.warning(
                "PYTHONDONTWRITEBYTECODE is set and PyTorch here is not compiled: every process compiles what it imports,"
                " which takes most of a short run; `uv sync --compile-bytecode` does it once"
            )
    for attempts_left in reversed(range(NUM_START_ATTEMPTS)):
        try:
            with own_sigterm(), silent_terminal() if is_quiet else contextlib.nullcontext():
                ray.init(address=address or "local", **options)
            return
        except Exception as error:
            ray.shutdown()
            failure = _failure(error, address, joins_cluster=joins_cluster)
            if isinstance(failure, ConfigError) or not attempts_left:
                raise failure from error
            log.warning("Ray did not start (%s); trying once more", error)


def _set_environment(*, joins_cluster: bool, is_quiet: bool) -> None:
    # What the user set stays.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if joins_cluster:
        # A try at an address where nobody is takes 41 s; Ray would make 20.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    else:
        # Ray 2.60 would turn token authentication on for a cluster that only this process can reach.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_SECONDS))
    if is_quiet:
        # Ray's C++ core writes to this terminal, past Python, what concerns its own developers; errors of tasks come as exceptions.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _failure(error: Exception, address: str | None, *, joins_cluster: bool) -> MmvpError:
    why = " ".join(str(error).split())[:300]
    # Ray says ValueError of an address that it cannot read.
    if isinstance(error, ConnectionError) or (joins_cluster and isinstance(error, ValueError)):
        where = address or "this machine"
        return ConfigError(f"expected a Ray cluster at {where}, found none ({why}); check --address and RAY_ADDRESS")
    if joins_cluster:
        return ResourceError(
            f"expected to join the Ray cluster at {address}, found that Ray failed to ({why}); see whether its versions of Ray "
            "and Python are those of this machine"
        )
    return ResourceError(f"Ray did not start on this machine ({why}); it may be too busy: try again")


def keep_standard_output() -> None:
    """Let Ray print what its workers and its raylet say to standard error alone: standard output is for a job's results."""
    from ray._private import worker

    # Ray 2.60 has no setting for it: it prints what workers wrote to their standard output to that of the driver.
    printed: Any = worker.print_worker_logs
    if getattr(printed, "func", None) is not _print_to_stderr:
        worker.print_worker_logs = functools.partial(_print_to_stderr, printed)


def _print_to_stderr(printed: Callable[..., None], data: dict[str, Any], _: Any, *more: Any) -> None:
    printed(data, sys.stderr, *more)


@contextlib.contextmanager
def silent_terminal() -> Iterator[None]:
    """Hide what is written to the terminal past Python: Ray's C++ core announces its log level there. A failed start raises all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def compiles_in_every_process() -> bool:
    """True when imports find no bytecode and may keep none; PyTorch, the largest, stands for all packages."""
    if not sys.dont_write_bytecode:
        return False
    torch = importlib.util.find_spec("torch")
    return torch is not None and torch.cached is not None and not Path(torch.cached).exists()


@contextlib.contextmanager
def own_sigterm() -> Iterator[None]:
    """Put back the handler of SIGTERM that ray.init replaces by one that only exits; a process without one keeps Ray's."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
