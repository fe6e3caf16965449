"""A workspace: a folder with the database and the pictures; connections, transactions, and events written with what they record."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmvp_ray.annotate.tables import TABLES, TABLES_VERSION
from mmvp_ray.errors import ConfigError, DataError, ResourceError

DATABASE: Final = "annotate.sqlite"
BUSY_SECONDS: Final = 30.0
"""How long a writer waits for another one."""

Row = sqlite3.Row


@dataclass(frozen=True, slots=True)
class Workspace:
    """An open workspace. Safe to use from many threads and processes: each thread has its own connection, SQLite orders the writers.

    Attributes:
        folder: Holds the database, images/ (bytes as imported) and views/ (what browsers get).
    """

    folder: Path
    _local: threading.local = field(default_factory=threading.local, repr=False)

    @property
    def images(self) -> Path:
        """Folder of the encoded bytes as they were imported."""
        return self.folder / "images"

    @property
    def views(self) -> Path:
        """Folder of the pictures that browsers get."""
        return self.folder / "views"

    def rows(self, sql: str, *values: Any, **named: Any) -> list[Row]:
        """All rows of a query, as of one moment; values for its ? or, by name, for its :names."""
        return self._connection().execute(sql, named or values).fetchall()

    def row(self, sql: str, *values: Any, **named: Any) -> Row | None:
        """The first row of a query."""
        found: Row | None = self._connection().execute(sql, named or values).fetchone()
        return found

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: everything in it is on the disk when the block ends, or nothing is if it raises.

        Raises:
            ResourceError: the disk is full, or others wrote for longer than BUSY_SECONDS.
        """
        connection = self._connection()
        assert not connection.in_transaction, "transactions do not nest"
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            _roll_back(connection)
            raise ResourceError(
                f"expected to write to {self.folder / DATABASE}, found {error}; make room, or try again"
            ) from error
        except BaseException:
            _roll_back(connection)
            raise

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _connect(self.folder / DATABASE)
            self._local.connection = connection
        return connection


def record(
    connection: sqlite3.Connection,
    kind: str,
    content: Mapping[str, Any] | None = None,
    *,
    user_id: int | None = None,
    pair_id: int | None = None,
    at: float | None = None,
) -> None:
    """Add an event to the audit trail, in the transaction that makes the change.

    Args:
        connection: Of the transaction.
        kind: What happened, such as "annotated".
        content: Whatever says more; becomes JSON. No secrets.
        user_id: Who did it; None for the operator's commands.
        pair_id: About which pair.
        at: When, in seconds since 1970; now unless given.
    """
    connection.execute(
        "INSERT INTO events (at, user_id, pair_id, kind, content) VALUES (?, ?, ?, ?, ?)",
        (time.time() if at is None else at, user_id, pair_id, kind, json.dumps(content or {}, ensure_ascii=False)),
    )


def create_workspace(folder: str | Path) -> Workspace:
    """The workspace in a folder, made there if there is none.

    Raises:
        ConfigError: the folder is not on this machine or cannot be written. DataError: of another version.
    """
    path = _local_folder(folder)
    if not _has_tables(path / DATABASE):
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not any(path.iterdir()):
                # Images and tokens' hashes are nobody else's business on a shared machine; a folder with other things in it stays as it is.
                path.chmod(0o700)
            for part in (path / "images", path / "views"):
                part.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"expected a folder that can be made at {path}, found {error.strerror}") from error
        connection = None
        try:
            connection = _connect(path / DATABASE)
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in _statements(TABLES):
                    connection.execute(statement)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("tables_version", str(TABLES_VERSION)), ("secret", secrets.token_hex(32))],
                )
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise ResourceError(
                f"expected to write to {path / DATABASE}, found {error}; make room, or try again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"expected a workspace's database at {path / DATABASE}, found {error}") from error
        finally:
            if connection is not None:
                connection.close()
    return open_workspace(path)


def open_workspace(folder: str | Path) -> Workspace:
    """The workspace in a folder.

    Raises:
        ConfigError: there is none. DataError: it is of another version, or no database.
    """
    path = _local_folder(folder)
    if not os.path.isfile(path / DATABASE):  # noqa: PTH113  False, too, where one may not look
        raise ConfigError(
            f"expected a workspace with {DATABASE} in {path}, found none; `jobs/annotate.py import` makes one"
        )
    workspace = Workspace(path)
    try:
        found = workspace.row("SELECT value FROM meta WHERE name = 'tables_version'")
    except sqlite3.DatabaseError as error:
        raise DataError(f"expected a workspace's database at {path / DATABASE}, found {error}") from error
    version = None if found is None else found["value"]
    if version != str(TABLES_VERSION):
        raise DataError(
            f"expected a workspace of version {TABLES_VERSION}, found {version} in {path}; open it with the mmvp-ray that wrote it"
        )
    return workspace


def _has_tables(path: Path) -> bool:
    """Whether a workspace was made here; one whose making was cut short has none."""
    try:
        if not os.path.isfile(path):  # noqa: PTH113  False, too, where one may not look
            return False
        with contextlib.closing(_connect(path)) as connection:
            return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone() is not None
    except sqlite3.DatabaseError:
        # Whoever opens it says what it is.
        return True


def _local_folder(folder: str | Path) -> Path:
    if not str(folder):
        raise ConfigError("expected --workspace FOLDER, found none")
    if "://" in str(folder):
        raise ConfigError(f"expected a folder on this machine, found {folder}; SQLite needs a local disk")
    return Path(folder).expanduser().absolute()


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun by hand: sqlite3's own would begin them late, as readers.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: what was acknowledged outlives a power cut, not only a killed process.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: executescript would commit before it runs them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
