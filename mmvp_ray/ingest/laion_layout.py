"""Where everything lies in the folder of a LAION ingestion.

OUT/ingest.json                     what was asked for, how many images came of it, and why the others did not; written last
OUT/plan/settings.json              what the plan was made of: once downloads began, another plan does not go into the same folder
OUT/plan/shards/<shard>.feather     the URLs of a shard, as img2dataset's Downloader reads them
OUT/plan/plan.json                  the plan's counts; present means whole
OUT/plan/files, OUT/plan/duplicates what the plan is made from; removed when it is whole
OUT/shards/<shard>.tar              the images: what jobs/mine.py --corpus laion=OUT/shards reads
OUT/urls/<shard>.parquet            every URL of the shard: status, reason, sha256 of the image
OUT/stats/<shard>.json              img2dataset's own statistics, and the counts by reason
OUT/done/<shard>.done.json          its marker, written last: present means whole
OUT/attempts/<shard>.<process>      work that is going on, or that died

Names of shards are numbers of one length, so that they sort as numbers do.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.store.layout import DONE


@dataclass(frozen=True, slots=True)
class LaionLayout:
    """The root of an ingestion; every path in it is made here."""

    root: str

    @property
    def summary(self) -> str:
        """Counts of the whole ingestion."""
        return storage.join(self.root, "ingest.json")

    @property
    def settings(self) -> str:
        """What the plan was made of."""
        return storage.join(self.root, "plan", "settings.json")

    @property
    def plan(self) -> str:
        """The plan's counts."""
        return storage.join(self.root, "plan", "plan.json")

    @property
    def plan_files(self) -> str:
        """Folder of the filtered rows of each metadata file."""
        return storage.join(self.root, "plan", "files")

    @property
    def plan_duplicates(self) -> str:
        """Folder of the places of URLs that stand earlier in the metadata."""
        return storage.join(self.root, "plan", "duplicates")

    @property
    def plan_shards(self) -> str:
        """Folder of the shards' URLs."""
        return storage.join(self.root, "plan", "shards")

    @property
    def shards(self) -> str:
        """Folder of the tars."""
        return storage.join(self.root, "shards")

    @property
    def urls(self) -> str:
        """Folder of the tables of URLs."""
        return storage.join(self.root, "urls")

    @property
    def stats(self) -> str:
        """Folder of the statistics."""
        return storage.join(self.root, "stats")

    @property
    def done(self) -> str:
        """Folder of the shards' markers."""
        return storage.join(self.root, "done")

    @property
    def attempts(self) -> str:
        """Folder of what is going on."""
        return storage.join(self.root, "attempts")

    @property
    def downloads(self) -> tuple[str, ...]:
        """All folders that are there only after a download began."""
        return self.attempts, self.shards, self.urls, self.stats, self.done

    def marker(self, name: str) -> str:
        """The marker of a shard."""
        return storage.join(self.done, name + DONE)

    def relative(self, uri: str) -> str:
        """The path of `uri` below the root."""
        return uri.removeprefix(self.root.rstrip("/") + "/")
