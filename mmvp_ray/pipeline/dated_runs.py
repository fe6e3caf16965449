"""A folder of dated runs on one store: the name of the next one, the pointer to the latest, and what changed since the one before.

RUNS/2026-11-21T031500Z/    a run, named after the moment (UTC) at which it was begun
RUNS/latest.json            the newest run that ended well; moved as a run's last deed
RUNS/store/                 the store of all, unless --store names another
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import DataError
from mmvp_ray.pipeline.config import MineConfig
from mmvp_ray.pipeline.results import DIFF_HTML, DIFF_JSON, MANIFEST

LATEST = "latest.json"
NAME_FORMAT = "%Y-%m-%dT%H%M%SZ"
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d{6}Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatedRun:
    """The run that comes next in a folder of dated runs.

    Attributes:
        runs: The folder.
        name: Of the run in it.
        is_begun: True for one that was begun, did not end, and is taken up again.
        previous: The newest run before it that ended well; None if there is none.
        is_late: True if `latest.json` does not name `previous` yet: that run was killed after it had ended.
    """

    runs: str
    name: str
    is_begun: bool
    previous: str | None
    is_late: bool

    @property
    def url(self) -> str:
        """Folder of the run."""
        return storage.join(self.runs, self.name)

    def config(self, config: MineConfig) -> MineConfig:
        """The config of the run: the given one with its folder, its store, and the run that it is compared with, filled in."""
        compare_with = config.compare_with
        if compare_with is None and self.previous is not None:
            earlier = storage.join(self.runs, self.previous)
            # A takedown reopens the runs that showed what it took down.
            compare_with = earlier if storage.exists(storage.join(earlier, MANIFEST)) else None
        return replace(config, runs=None, out=self.url, store=config.store_url, compare_with=compare_with)

    def lines(self) -> list[str]:
        """For people: which run it is, and what it is compared with."""
        begun = "taken up again, it had not ended" if self.is_begun else "a new one"
        before = "the first one here" if self.previous is None else f"the latest is {self.previous}"
        return [f"run {self.name} in {self.runs}: {begun}; {before}"]


def next_run(runs: str, now: datetime) -> DatedRun:
    """The run that comes next in a folder: the newest one that was begun after the latest and has not ended, else a new one.

    A run killed after its manifest was written, before it became the latest, has ended: the next one is compared with it.

    Args:
        runs: The folder; there may be none yet.
        now: The moment, in UTC. A new run is named after it, or after the newest run if that has a later name, so that names are in order
            whatever the clocks of the hosts say.

    Raises:
        DataError: latest.json names no run.
    """
    runs = storage.normalise(runs)
    latest = read_latest(runs)
    names = dated_names(runs)
    newer = [name for name in names if latest is None or name > latest]
    ended = [name for name in newer if storage.exists(storage.join(runs, name, MANIFEST))]
    previous = ended[-1] if ended else latest
    begun = [name for name in newer if previous is None or name > previous]
    return DatedRun(
        runs=runs,
        name=begun[-1] if begun else _new_name(now, names[-1] if names else latest),
        is_begun=bool(begun),
        previous=previous,
        is_late=previous != latest,
    )


def planned(config: MineConfig) -> MineConfig:
    """The config that a run would have if it began now, for --plan; nothing is moved or taken."""
    return config if config.runs is None else next_run(config.runs, datetime.now(UTC)).config(config)


def _new_name(now: datetime, newest: str | None) -> str:
    if newest is not None:
        now = max(now, datetime.strptime(newest, NAME_FORMAT).replace(tzinfo=UTC) + timedelta(seconds=1))
    return now.strftime(NAME_FORMAT)


def dated_names(runs: str) -> list[str]:
    """Names of the dated runs in a folder, oldest first, ended or not."""
    return [name for name in storage.list_folders(runs) if _is_name(name)]


def _is_name(text: Any) -> bool:
    if not isinstance(text, str) or _NAME.fullmatch(text) is None:
        return False
    try:
        datetime.strptime(text, NAME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def read_latest(runs: str) -> str | None:
    """The name of the latest run of a folder that ended well; None where there is none.

    Raises:
        DataError: latest.json names no run.
    """
    uri = storage.join(runs, LATEST)
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    name = found.get("run") if isinstance(found, dict) else None
    if not _is_name(name):
        raise DataError(
            f'expected {{"run": "2026-11-21T031500Z"}} in {uri}, found {str(found)[:80]}; remove it, the next run writes it anew'
        )
    return str(name)


def point_to(runs: str, name: str) -> None:
    """Make a run that ended well the latest of its folder, atomically.

    Raises:
        DataError: it has no manifest.
    """
    manifest = storage.read_json(storage.join(runs, name, MANIFEST))
    previous = read_latest(runs)
    if previous != name:
        storage.write_json(
            storage.join(runs, LATEST), {"run": name, "created_at": manifest["created_at"], "previous": previous}
        )


def run_folder(url: str) -> str:
    """The folder of the run that a URL means: its own, or that of the latest run where it is RUNS or RUNS/latest.

    Raises:
        DataError: latest.json names no run.
    """
    url = storage.normalise(url)
    if storage.exists(storage.join(url, MANIFEST)):
        return url
    runs = url.removesuffix("/latest")
    latest = read_latest(runs)
    return url if latest is None else storage.join(runs, latest)


def change_lines(run_url: str) -> list[str]:
    """For people: what became of the blind pairs of the run that a run was compared with; nothing if it was compared with none."""
    uri = storage.join(run_url, DIFF_JSON)
    if not storage.exists(uri):
        return []
    diff = storage.read_json(uri)
    return [
        f"  since {diff['old']['url']}: {diff['num_fixed']:,} pairs fixed, {diff['num_still_blind']:,} still blind, {diff['num_new_blind']:,} newly "
        f"blind, {diff['num_new_images']:,} with new images, {diff['num_gone']:,} gone",
        f"  diff: {storage.join(run_url, DIFF_HTML)}",
    ]
