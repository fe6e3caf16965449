"""The lease of a store: one holder at a time, on hosts whose clocks need not agree, and free again after a crash.

    STORE/leases/000042.json        who holds it, its renewals, and for how many seconds a renewal counts

The file with the highest number is the lease. It is free when its holder has released it or certainly runs no more; else whoever wants it
watches the file, by the watcher's own clock, for as long as a renewal counts: a renewal means that the holder is alive, none that it is not.
Who takes it makes the file with the next number, which a file system grants to one taker alone. A holder trusts its lease only until nine
tenths of that time have passed, by its own clock, since the last renewal that was answered in time; it never waits for others, so that a
holder which slept too long, or was cut off, stops trusting it before anybody else can have it (docs/decisions/0009).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from mmvp_ray.errors import MmvpError, ResourceError
from mmvp_ray.store import lease_file
from mmvp_ray.store.layout import Store
from mmvp_ray.store.lease_file import Entry
from mmvp_ray.store.lease_holder import Holder

TTL_SECONDS = 120.0
"""How long a renewal counts: a crashed run on another host holds the next one up for so long."""
RENEWALS_PER_TTL = 4
TRIES_PER_TTL = 20
"""How often a renewal that failed is tried again, and a watcher looks."""
TRUST = 0.9
"""Share of that time for which a holder trusts a renewal: its clock may run slower than a watcher's by the rest."""
REMOVED_SECONDS = 0.1
"""Pause before a folder is listed again in which a file was listed that is not there."""
JOIN_SECONDS = 5.0
"""The end of a run waits so long for a renewal that is under way: less than an orderly stop may take (job.py)."""
NUM_KEPT = 8
"""Files of earlier leases that stay, to be looked at."""

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds that pass, of one machine."""

    def now(self) -> float:
        """Seconds since some moment; never set back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class _MachineClock:
    """Counts on while the machine is suspended, which time.monotonic does not on Linux: a holder that slept must know."""

    def now(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


MACHINE_CLOCK = _MachineClock()


class Lease:
    """A lease that this process took; `hold` renews and releases it."""

    def __init__(self, store: Store, entry: Entry, *, trusted_until: float, clock: Clock) -> None:
        self._store = store
        self._entry = entry
        self._trusted_until = trusted_until
        self._clock = clock
        self._lost: str | None = None
        self._failure = ""

    @property
    def number(self) -> int:
        """Of its file; each lease of a store has a higher one than those before it."""
        return self._entry.number

    @property
    def ttl_seconds(self) -> float:
        """For how long a renewal counts."""
        return self._entry.ttl_seconds

    @property
    def is_trusted(self) -> bool:
        """True while nobody else can have the lease; looks at the clock alone."""
        return self._lost is None and self._clock.now() < self._trusted_until

    def renew(self) -> None:
        """Renew it once; a lease that is not trusted any more stays so.

        Raises:
            MmvpError: the store was unwell; the lease holds as long as its last renewal does.
        """
        began = self._clock.now()
        if not self.is_trusted:
            return
        self._look()
        if self._lost is None:
            entry = dataclasses.replace(self._entry, num_renewals=self._entry.num_renewals + 1, renewed_at=_wall_time())
            lease_file.write(self._store, entry)
            # An answer that came late came when somebody else may have had it already.
            if self.is_trusted:
                self._entry = entry
                self._trusted_until = began + TRUST * entry.ttl_seconds

    def confirm(self) -> None:
        """Make sure that it is still held: by the clock, and by the files.

        Raises:
            ResourceError: it is not; what was to be done under it must not be done. MmvpError: the store was unwell.
        """
        if self.is_trusted:
            self._look()
        if not self.is_trusted:
            reason = self._lost or f"it was not renewed for {self.ttl_seconds:g} s{self._failure}"
            raise ResourceError(
                f"expected to hold the lease {self.number} of {self._store.root} still, found it lost: {reason}; the run does not count, start it again: it goes on"
            )

    def release(self) -> None:
        """Mark it as released; to be called once, when nothing renews it any more.

        Raises:
            MmvpError: the store was unwell; the lease is free when its time is over.
        """
        # First: as soon as the file says so, somebody else may have it.
        self._lost = self._lost or "it was released"
        found = lease_file.read(self._store, self.number)
        if found is not None and found.token == self._entry.token:
            lease_file.write(self._store, dataclasses.replace(self._entry, released_at=_wall_time()))

    def keep(self, stop: threading.Event) -> None:
        """Renew it until `stop`, or until it is lost; a renewal that fails is tried again soon."""
        wait = self.ttl_seconds / RENEWALS_PER_TTL
        while not stop.wait(wait) and self.is_trusted:
            try:
                self.renew()
                wait, self._failure = self.ttl_seconds / RENEWALS_PER_TTL, ""
            except Exception as error:
                wait, self._failure = self.ttl_seconds / TRIES_PER_TTL, f" ({type(error).__name__}: {error})"
                log.warning("the lease %d of %s was not renewed: %s", self.number, self._store.root, error)

    def _look(self) -> None:
        """Find out whether somebody took it over, or took its file away."""
        newest = max(lease_file.numbers(self._store), default=0)
        found = lease_file.read(self._store, self.number)
        if newest > self.number:
            other = lease_file.read(self._store, newest)
            self._lost = f"taken over by {newest if other is None else other}"
        elif found is None or found.token != self._entry.token:
            self._lost = f"its file {lease_file.uri_of(self._store, self.number)} was removed"


@contextlib.contextmanager
def hold(
    store: Store, *, run: str, ttl_seconds: float = TTL_SECONDS, on_wait: Callable[[str], None] = lambda text: None
) -> Iterator[Lease]:
    """Hold the lease of a store for the length of a `with` block, renewed by a thread.

    Args:
        store: The store.
        run: What it is held for, in words, such as the folder of a run.
        ttl_seconds: For how long a renewal counts.
        on_wait: Told what is waited for, if the last holder may have crashed.

    Raises:
        ResourceError: somebody else holds it. ConfigError: the file system cannot create a file exclusively. DataError: a lease's file is
            broken. TransientError: the store stayed unwell.
    """
    lease = take(store, run=run, ttl_seconds=ttl_seconds, on_wait=on_wait)
    stop = threading.Event()
    thread = threading.Thread(target=lease.keep, args=(stop,), name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        # A renewal that hangs must not hold up the end; should it arrive after the release, the lease is free when its time is over.
        thread.join(timeout=JOIN_SECONDS)
        try:
            lease.release()
        except MmvpError as error:
            log.warning("the lease %d of %s was not released: %s", lease.number, store.root, error)


def take(
    store: Store,
    *,
    run: str,
    ttl_seconds: float = TTL_SECONDS,
    clock: Clock = MACHINE_CLOCK,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Lease:
    """Take the lease of a store, after watching it if its last holder may have crashed; see `hold`, which also renews it.

    Raises:
        ResourceError, ConfigError, DataError, TransientError: as for `hold`.
    """
    while True:
        newest = max(lease_file.numbers(store), default=0)
        found = lease_file.read(store, newest) if newest else None
        if newest and found is None:
            clock.sleep(REMOVED_SECONDS)
            continue
        if found is not None and not found.is_free:
            on_wait(
                f"lease: {store.root} is leased to {found}; waiting up to {found.ttl_seconds:g} s for a sign of life"
            )
            _watch(store, found, clock)
        lease = _claim(store, newest + 1, run=run, ttl_seconds=ttl_seconds, clock=clock)
        if lease is not None:
            return lease


def _watch(store: Store, seen: Entry, clock: Clock) -> None:
    """Return when the lease is free or its holder showed no sign of life for as long as a renewal counts."""
    began = clock.now()
    is_over = False
    while not is_over:
        left = began + seen.ttl_seconds - clock.now()
        clock.sleep(max(0.0, min(seen.ttl_seconds / TRIES_PER_TTL, left)))
        # The clock first: what is read then was so when the time was over.
        is_over = clock.now() - began >= seen.ttl_seconds
        newest = max(lease_file.numbers(store), default=0)
        found = lease_file.read(store, newest) if newest else None
        if found is None or found.is_free:
            return
        if (found.token, found.num_renewals) != (seen.token, seen.num_renewals):
            raise ResourceError(
                f"expected {store.root} free for a scheduled run or a takedown, found it leased to {found}; wait until that has ended, or stop it "
                f"(docs/remining.md says how a lease is broken)"
            )


def _claim(store: Store, number: int, *, run: str, ttl_seconds: float, clock: Clock) -> Lease | None:
    """Make the file with a number; None if somebody else has it or a higher one."""
    began, at = clock.now(), _wall_time()
    entry = Entry(
        number=number,
        token=uuid.uuid4().hex,
        holder=Holder.this_process(run),
        acquired_at=at,
        renewed_at=at,
        num_renewals=0,
        ttl_seconds=ttl_seconds,
    )
    lease_file.create(store, entry)
    found, numbers = lease_file.read(store, number), lease_file.numbers(store)
    if found is None or found.token != entry.token:
        return None
    if max(numbers, default=0) != number:
        # Ours alone, and below the lease: this process slept while others came and went.
        lease_file.remove(store, number)
        return None
    for old in numbers:
        if old <= number - NUM_KEPT:
            lease_file.remove(store, old)
    return Lease(store, entry, trusted_until=began + TRUST * ttl_seconds, clock=clock)


def _wall_time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
