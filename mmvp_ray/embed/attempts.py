"""Attempt files: which pieces were in an encoder when its process died, and how often (docs/decisions/0010)."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import psutil

from mmvp_ray import storage
from mmvp_ray.errors import DataError, ResourceError
from mmvp_ray.store import Store

FOLDER = "attempts"
"""Below the store's root: empty files <corpus>/<piece>.<number>-<run>, there while the piece is in an encoder."""

LOADING = ".loading"
"""Folder beside the corpora: a file <run>.<id> for each encoder actor of a run that is loading its encoders, or died doing so."""

OPEN = "open"
"""In place of the id, in the file that is there while the run goes on; it tells of the driver."""

OPEN_SECONDS = 7 * 86_400.0
"""After so long the driver of a run on another machine is taken for dead. Were it not, its actors would load as ever, uncounted."""

CLOCK_SECONDS = 2.0
"""When a process started is counted from when the machine did, which moves as its clock is set."""

NUM_CAREFUL = 4
"""Pieces of a process whose attempt is on the disk before they begin. What killed an actor comes back as one of the first pieces of the process
that replaces it (Ray Data keeps two in an actor's queue); later ones do not wait for the write."""

NUM_LOST_ACTORS = 2
"""A piece that so many actors died of is embedded apart: once may be chance (a lost node, a killed worker)."""

MAX_LOADS_LOST = 4
"""Actors that may die in a row while they load."""


class Attempts:
    """Counts the tries of pieces in the store, where the next process finds them, on whichever node.

    Args:
        store: The store.
        run: Id of the run, without dots.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        # Corpus to piece to run to its tries.
        self._found: dict[str, dict[str, dict[str, int]]] = {}
        self._num_begun = 0
        self._writer = ThreadPoolExecutor(1)

    def begin(self, corpus: str, piece: str) -> int:
        """Note that an encoder begins with a piece.

        Returns:
            How many tries began before and did not end. Of another run, whose driver was killed or which is at it just now, they count as one,
            and of all others as NUM_LOST_ACTORS at most: what killed those drivers need not be the piece. So they may have it embedded apart,
            which costs time alone, but never end this run.
        """
        if corpus not in self._found:
            self._found[corpus] = self._look(corpus)
        tries = self._found[corpus].get(piece, {})
        num_own = tries.get(self._run, 0)
        num_before = num_own + min(len(tries.keys() - {self._run}), NUM_LOST_ACTORS)
        written = self._writer.submit(storage.write_bytes, self._uri(corpus, piece, num_own + 1), b"")
        if num_before or self._num_begun < NUM_CAREFUL:
            written.result()
        self._num_begun += 1
        return num_before

    def end(self, corpus: str, piece: str) -> Callable[[], None]:
        """Note that the danger is over; gives a function that waits until that is in the store."""
        num_tries = self._found[corpus].pop(piece, {}).get(self._run, 0) + 1
        # One writer: the removal comes after the write.
        removed: list[Future[None]] = [
            self._writer.submit(storage.remove, self._uri(corpus, piece, number)) for number in range(1, num_tries + 1)
        ]

        def wait() -> None:
            for one in removed:
                one.result()

        return wait

    def _look(self, corpus: str) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for name in storage.list_names(storage.join(self._store.root, FOLDER, corpus)):
            piece, _, note = name.rpartition(".")
            # Files of earlier versions name no run: together they count as one.
            number, _, run = note.partition("-")
            if number.isdecimal():
                tries = found.setdefault(piece, {})
                tries[run] = max(tries.get(run, 0), int(number))
        return found

    def _uri(self, corpus: str, piece: str, number: int) -> str:
        return storage.join(self._store.root, FOLDER, corpus, f"{piece}.{number}-{self._run}")


def open_loads(store: Store, run: str) -> None:
    """Let the actors of a run load their encoders, until `forget_loads`; what runs left whose driver was killed is removed."""
    folder = storage.join(store.root, FOLDER, LOADING)
    for other, _, note in (name.partition(".") for name in storage.list_names(folder)):
        if note == OPEN and _is_dead(_load_uri(store, other, OPEN)):
            forget_loads(store, other)
    driver = psutil.Process()
    facts = {"host": socket.gethostname(), "pid": driver.pid, "started": driver.create_time(), "time": time.time()}
    storage.write_json(_load_uri(store, run, OPEN), facts)


def _is_dead(driver: str) -> bool:
    try:
        facts = storage.read_json(driver)
    except DataError:
        # It has ended just now.
        return False
    if facts["host"] != socket.gethostname():
        return bool(facts["time"] < time.time() - OPEN_SECONDS)
    try:
        return bool(abs(psutil.Process(facts["pid"]).create_time() - facts["started"]) > CLOCK_SECONDS)
    except psutil.NoSuchProcess:
        return True


def load_noted(store: Store, run: str, load: Callable[[], None], *, num_actors: int, encoders: str) -> None:
    """Call `load`, and refuse to when too many processes of this run died of it: Ray would start another for ever.

    An actor that comes up when its run has ended (Ray Data starts them until the last piece is done) loads nothing and leaves nothing; what
    asks for its encoders nevertheless loads them then.

    Args:
        store: The store.
        run: Id of the run, without dots; `open_loads` was called for it.
        load: Loads the encoders.
        num_actors: Encoder actors of the run, which may load at the same time.
        encoders: Their names, for the message.

    Raises:
        ResourceError: more than MAX_LOADS_LOST died in a row.
    """
    own = uuid.uuid4().hex
    storage.write_bytes(_load_uri(store, run, own), b"")
    noted = _loads(store, run)
    if OPEN not in noted:
        storage.remove(_load_uri(store, run, own))
        return
    num_lost = len(noted) - 2
    if num_lost >= num_actors + MAX_LOADS_LOST:
        storage.remove(_load_uri(store, run, own))
        raise ResourceError(
            f"expected encoders that can be loaded, found that {num_lost - num_actors + 1} processes or more died of loading {encoders}; "
            f"see whether the workers have the memory for them, and the workers' logs"
        )
    load()
    # Those of others that load just now are forgotten too: it is only deaths in a row that count.
    for name in _loads(store, run):
        if name != OPEN:
            storage.remove(_load_uri(store, run, name))


def forget_loads(store: Store, run: str) -> None:
    """Remove what a run noted of its loads; actors of it that come later load nothing."""
    storage.remove(_load_uri(store, run, OPEN))
    for name in _loads(store, run):
        storage.remove(_load_uri(store, run, name))


def _loads(store: Store, run: str) -> list[str]:
    names = storage.list_names(storage.join(store.root, FOLDER, LOADING))
    return [note for of, _, note in (name.partition(".") for name in names) if of == run]


def _load_uri(store: Store, run: str, note: str) -> str:
    # One folder for all runs: to remove a run's own would fail where a late actor writes into it just then.
    return storage.join(store.root, FOLDER, LOADING, f"{run}.{note}")


def forget_tries(store: Store, corpora: Iterable[str]) -> None:
    """Remove what runs that have ended noted of the pieces of corpora, when one of them does, well or with an error.

    Only a killed driver leaves it to the next run. What another run notes that goes on (`open_loads`) stays, and so does the folder.
    """
    for corpus in corpora:
        folder = storage.join(store.root, FOLDER, corpus)
        names = storage.list_names(folder)
        # Looked at afterwards: whoever noted a try before has opened its loads before that.
        loads = storage.list_names(storage.join(store.root, FOLDER, LOADING)) if names else []
        for name in names:
            if f"{name.rpartition('.')[2].partition('-')[2]}.{OPEN}" not in loads:
                storage.remove(storage.join(folder, name))
