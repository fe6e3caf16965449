"""AnswerLog: every prompt and raw reply on disk, so that a run that was killed asks only what it has no answer to.

    FOLDER/manifest.json            version, the responder's name and identity
    FOLDER/part-NNNNNN.jsonl        one record a line; the last line is {"end": {"num_records": ..., "sha256": ..., "writer": ...}}: over the lines before it

A part is written whole, in one atomic put, and never touched again; whoever writes a part that is there already finds another writer
and stops. A record holds the prompt, its images' ids, and the reply; neither keys nor headers of requests ever reach it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from mmvp_ray import storage
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.answer_parts import MANIFEST, Record, content_digest, encoded, part_uri, read_part, read_parts
from mmvp_ray.evaluate.responder import Ask, Reply

VERSION = 1
FLUSH_COUNT = 64
FLUSH_SECONDS = 2.0
NUM_KEPT_PARTS = 16
"""Parts that are held in memory while kept answers are given again; prompts come in about the order in which they were answered."""

_HASH_BYTES = 16


class AnswerLog:
    """A log that is open for writing; a context manager. Thread-safe.

    Args:
        folder: Path or fsspec URL; made if it is not there.
        name: The responder's name.
        identity: The responder's identity.
        flush_count: Records of a part, at most.
        flush_seconds: Longest time that a record is not on disk.

    Raises:
        ConfigError: the folder holds answers of a responder with another identity. DataError: a part is torn, or a file is no part.
    """

    def __init__(
        self,
        folder: str,
        *,
        name: str,
        identity: Mapping[str, str],
        flush_count: int = FLUSH_COUNT,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.folder = storage.normalise(folder)
        self._flush_count = flush_count
        self._flush_seconds = flush_seconds
        self._writer = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._pending: list[Record] = []
        self._pending_since = 0.0
        self._broken: Exception | None = None
        self._closed = threading.Event()
        _open_manifest(self.folder, name=name, identity=dict(identity))
        self._part_of: dict[bytes, int] = {}
        self._failed: set[bytes] = set()
        self._next_part = 0
        for number, records in read_parts(self.folder):
            self._next_part = number + 1
            for record in records:
                mark = _mark(record)
                if record.reply.error is None:
                    self._part_of[mark] = number
                else:
                    self._failed.add(mark)
        self._kept_parts: dict[int, dict[bytes, Reply]] = {}
        self._timer = threading.Thread(target=self._flush_in_time, name="answer-log", daemon=True)
        self._timer.start()

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def num_answers(self) -> int:
        """Prompts that have an answer, on disk or about to be."""
        return len(self._part_of)

    @property
    def num_failures(self) -> int:
        """Prompts that failed and have no answer."""
        return len(self._failed - self._part_of.keys())

    def has_failed(self, ask: Ask, image_ids: Sequence[str]) -> bool:
        """Whether the same prompt under the same key has failed."""
        return _mark_of(ask, image_ids) in self._failed

    def find(self, ask: Ask, image_ids: Sequence[str]) -> Reply | None:
        """The answer to the same prompt under the same key, from the disk or about to be there; None if it was never answered.

        Failures are not found: they are asked again. What a reply has in `raw` stays on disk.
        """
        mark = _mark_of(ask, image_ids)
        with self._lock:
            number = self._part_of.get(mark)
            if number is None:
                return None
            if number == self._next_part:
                return next(_without_raw(record.reply) for record in self._pending if _mark(record) == mark)
            if number not in self._kept_parts:
                records = read_part(self.folder, number)
                answered = {
                    _mark(record): _without_raw(record.reply) for record in records if record.reply.error is None
                }
                while len(self._kept_parts) >= NUM_KEPT_PARTS:
                    del self._kept_parts[next(iter(self._kept_parts))]
                self._kept_parts[number] = answered
            return self._kept_parts[number][mark]

    def add(self, ask: Ask, image_ids: Sequence[str], reply: Reply) -> None:
        """Keep a reply; it is on disk at the next flush, after `flush_count` records or `flush_seconds`.

        Raises:
            ConfigError: somebody else writes into this log. ResourceError, TransientError: it could not be written.
        """
        record = Record(ask=ask, image_ids=tuple(image_ids), reply=reply)
        with self._lock:
            self._raise_if_broken()
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.append(record)
            if reply.error is None:
                self._part_of[_mark(record)] = self._next_part
            else:
                self._failed.add(_mark(record))
            if len(self._pending) >= self._flush_count:
                self._flush()

    def flush(self) -> None:
        """Write what is not on disk yet; when this returns, it is."""
        with self._lock:
            self._raise_if_broken()
            self._flush()

    def close(self) -> None:
        """Flush, and end the thread that flushes in time."""
        self._closed.set()
        self._timer.join()
        self.flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        uri = part_uri(self.folder, self._next_part)
        if not _create(uri, encoded(self._pending, writer=self._writer)):
            self._broken = ConfigError(
                f"expected to be the only writer of {self.folder}, found {uri} written by another run; give each run a folder of its own"
            )
            raise self._broken
        self._pending = []
        self._next_part += 1

    def _flush_in_time(self) -> None:
        while not self._closed.wait(self._flush_seconds / 4):
            with self._lock:
                if not self._pending or time.monotonic() < self._pending_since + self._flush_seconds * 0.75:
                    continue
                try:
                    self._flush()
                except Exception as error:
                    # Raised where the next reply is added, or at the end.
                    self._broken = error
                    return

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise self._broken


def read_identity(folder: str) -> tuple[str, dict[str, str]]:
    """The name and the identity of the responder whose answers a log holds.

    Raises:
        DataError: there is no log, or one of another version.
    """
    manifest = storage.read_json(storage.join(storage.normalise(folder), MANIFEST))
    _check_version(manifest, folder)
    return str(manifest["name"]), dict(manifest["identity"])


def _open_manifest(folder: str, *, name: str, identity: dict[str, str]) -> None:
    uri = storage.join(folder, MANIFEST)
    if not storage.exists(uri):
        if storage.list_names(folder):
            raise DataError(
                f"expected a new folder or a log of answers at {folder}, found other files and no {MANIFEST}; choose another folder"
            )
        if _create(uri, _manifest(name, identity)):
            return
    manifest = storage.read_json(uri)
    _check_version(manifest, folder)
    found = manifest["identity"]
    if found != identity:
        differing = sorted(key for key in found.keys() | identity.keys() if found.get(key) != identity.get(key))
        shown = ", ".join(f"{key} {_brief(identity.get(key))} (there {_brief(found.get(key))})" for key in differing)
        raise ConfigError(
            f"expected the responder whose answers are in {folder}, found one that differs in {shown}; give each responder a folder of its own"
        )


def _manifest(name: str, identity: dict[str, str]) -> bytes:
    content = {"version": VERSION, "name": name, "identity": identity, "fingerprint": fingerprint(identity)}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _check_version(manifest: Any, folder: str) -> None:
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != VERSION or not isinstance(manifest.get("identity"), dict):
        raise DataError(
            f"expected a log of answers of version {VERSION} in {folder}, found version {version}; choose another folder"
        )


def _create(uri: str, data: bytes) -> bool:
    # Elsewhere nobody can say who was first; there a second writer is not noticed.
    if storage.is_local(uri) or storage.in_object_store(uri):
        return storage.create_bytes(uri, data)
    if storage.exists(uri):
        return False
    storage.write_bytes(uri, data)
    return True


def _mark(record: Record) -> bytes:
    return _mark_of(record.ask, record.image_ids)


def _mark_of(ask: Ask, image_ids: Sequence[str]) -> bytes:
    """What answers are looked up by, short: key and content."""
    text = json.dumps([ask.key, content_digest(ask, image_ids)])
    return hashlib.sha256(text.encode()).digest()[:_HASH_BYTES]


def _without_raw(reply: Reply) -> Reply:
    return dataclasses.replace(reply, raw=None)


def _brief(value: object) -> str:
    return repr(value)[:60]
