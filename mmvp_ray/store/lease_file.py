"""The file of a lease: what it says, and the folder STORE/leases in which the highest number is the lease (store/lease.py)."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.store.layout import Store
from mmvp_ray.store.lease_holder import Holder


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the file of a lease says; its times are for people and are never compared.

    Attributes:
        number: In the file's name.
        token: Differs for every lease.
        holder: Who holds it.
        acquired_at, renewed_at, released_at: ISO times in UTC by the holder's wall clock; the last one is None while it is held.
        num_renewals: Rises with each renewal.
        ttl_seconds: For how long a renewal counts.
    """

    number: int
    token: str
    holder: Holder
    acquired_at: str
    renewed_at: str
    num_renewals: int
    ttl_seconds: float
    released_at: str | None = None

    @property
    def is_free(self) -> bool:
        """True if it was released, or its holder is known to have ended."""
        return self.released_at is not None or self.holder.is_gone()

    def __str__(self) -> str:
        """For messages."""
        return f"{self.holder} since {self.acquired_at}"


def _folder(store: Store) -> str:
    return storage.join(store.root, "leases")


def uri_of(store: Store, number: int) -> str:
    """The file with a number."""
    return storage.join(_folder(store), f"{number:06d}.json")


def numbers(store: Store) -> list[int]:
    """All numbers that there are, in no particular order."""
    names = storage.list_names(_folder(store))
    return [int(match[1]) for match in (re.fullmatch(r"(\d{6,})\.json", name) for name in names) if match]


def read(store: Store, number: int) -> Entry | None:
    """The entry with a number; None if there is no such file.

    Raises:
        DataError: the file is no lease.
    """
    uri = uri_of(store, number)
    try:
        values = storage.read_json(uri)
        found = Entry(**{**values, "number": number, "holder": Holder.of(values["holder"])})
        if not (isinstance(found.ttl_seconds, (int, float)) and isinstance(found.holder.pid, int)):
            raise TypeError("ttl_seconds or pid is no number")
        return found
    except (DataError, KeyError, TypeError) as error:
        if not storage.exists(uri):
            return None
        raise DataError(
            f"expected the lease of a store in {uri}, found something else ({' '.join(str(error).split())}); remove it if no scheduled run is at work"
        ) from error


def write(store: Store, entry: Entry) -> None:
    """Replace the file of an entry; only its holder does."""
    storage.write_bytes(uri_of(store, entry.number), _text(entry))


def _text(entry: Entry) -> bytes:
    values: dict[str, Any] = dataclasses.asdict(entry)
    del values["number"]
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def create(store: Store, entry: Entry) -> None:
    """Write an entry unless its number is taken; `read` tells whose it is then.

    Not the answer of the file system: where one got lost, the next attempt found our own file; and a store that ignores the condition
    shows when it is read.

    Raises:
        ConfigError: the file system cannot create a file exclusively.
    """
    storage.create_bytes(uri_of(store, entry.number), _text(entry))


def remove(store: Store, number: int) -> None:
    """Remove the entry with a number."""
    storage.remove(uri_of(store, number))
