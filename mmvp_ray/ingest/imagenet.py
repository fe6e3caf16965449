"""ImageNet as webdataset shards: the official archives read in place, or a copy of an ImageFolder tree or of Hugging Face Parquet.

The archives are not unpacked: their headers are read once (done/<split>.index.json), and one task for each inner tar, or for a thousand
validation images, reads its range. Folders and Parquet can be mined as they are; a copy of them gives fewer and larger files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.images.reasons import RejectReason
from mmvp_ray.ingest.imagenet_archives import train_parts, val_parts
from mmvp_ray.ingest.imagenet_images import ArchivePart
from mmvp_ray.ingest.imagenet_labels import ClassName, Labels, read_labels
from mmvp_ray.ingest.imagenet_shards import (
    ShardResult,
    ShardTask,
    done_folder,
    read_done,
    shards_folder,
    write_shard,
)
from mmvp_ray.sources import Shard, list_shards
from mmvp_ray.sources.fields import wnid_of
from mmvp_ray.store import done_names

OFFICIAL_CLASSES = 1000
OFFICIAL_IMAGES = {"train": 1_281_167, "val": 50_000}
"""Images of ILSVRC2012 (Russakovsky et al. 2015, table 2)."""
NUM_READING_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagenetConfig:
    """ImageNet to webdataset shards with wnid and label: which archives, which names, and where the shards go."""

    train: str | None = None
    """ILSVRC2012_img_train.tar (path or URL), read in place; or a folder of its inner tars (n01440764.tar)."""
    val: str | None = None
    """ILSVRC2012_img_val.tar (path or URL), read in place; needs --devkit or --val-labels."""
    images: str | None = None
    """Class folders (train/n01440764/*.JPEG) or Hugging Face Parquet to copy into shards; jobs/mine.py --corpus also takes them as they are."""
    devkit: str | None = None
    """ILSVRC2012_devkit_t12.tar.gz or its folder: ground truth of the validation images, and class names."""
    val_labels: str | None = None
    """In place of the devkit: a text of 'ILSVRC2012_val_00000001 n01751748' lines, or Kaggle's LOC_val_solution.csv."""
    class_names: str | None = None
    """Readable labels: LOC_synset_mapping.txt, imagenet_class_index.json, or the word timm for the names in the installed timm; the wnid is the label unless given."""
    out: str = "data/imagenet"
    """Folder (path or URL) of shards/, rejects/, the markers in done/, and ingest.json with all counts."""
    images_per_shard: int = 1000
    """Validation images in a shard; training images have a shard for each class."""
    max_reject_fraction: float = 0.05
    """Fail, after everything is written, when a larger share of the images could not be used."""
    allow_truncated: bool = False
    """Do not fail when an archive or an inner tar is cut short or damaged: what lies before the damage is written either way."""
    address: str | None = None
    """A running Ray cluster to use; a cluster of its own on this machine unless given or RAY_ADDRESS is set."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if self.train is None and self.val is None and self.images is None:
            raise ConfigError(
                "expected --train, --val or --images, found none; for example --train ILSVRC2012_img_train.tar --out s3://bucket/imagenet"
            )
        if self.val is not None and self.devkit is None and self.val_labels is None:
            raise ConfigError(
                "expected the ground truth of the validation images, found none; give --devkit ILSVRC2012_devkit_t12.tar.gz or --val-labels FILE"
            )
        if self.images_per_shard < 1:
            raise ConfigError(f"expected at least 1, found {self.images_per_shard} in --images-per-shard")
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ConfigError(f"expected 0 to 1, found {self.max_reject_fraction} in --max-reject-fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCounts:
    """What became of a split: its shards, those of them that an earlier run had done, images, images without a label, rejects by reason."""

    num_shards: int
    num_done_earlier: int
    num_images: int
    num_unlabelled: int
    num_bytes: int
    reasons: dict[str, int]

    @property
    def num_rejected(self) -> int:
        """Members that could not be used."""
        return sum(self.reasons.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagenetSummary:
    """What an ingest did, by split."""

    out: str
    splits: dict[str, SplitCounts] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Images in all shards."""
        return sum(counts.num_images for counts in self.splits.values())

    @property
    def num_rejected(self) -> int:
        """Members that could not be used."""
        return sum(counts.num_rejected for counts in self.splits.values())

    def counts(self) -> dict[str, dict[str, Any]]:
        """What OUT/ingest.json says of each split: nothing that depends on how often the ingest was begun."""
        return {
            split: {
                "num_shards": counts.num_shards,
                "num_images": counts.num_images,
                "num_unlabelled": counts.num_unlabelled,
                "num_bytes": counts.num_bytes,
                "num_rejected": counts.num_rejected,
                "reasons": counts.reasons,
            }
            for split, counts in self.splits.items()
        }

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = []
        for split, counts in self.splits.items():
            lines.append(
                f"{split}: {counts.num_images:,} images in {counts.num_shards:,} shards ({counts.num_done_earlier:,} done earlier), "
                f"{counts.num_bytes / 1e9:.2f} GB, {counts.num_rejected:,} rejected"
            )
            lines += [f"  {reason}: {count:,}" for reason, count in counts.reasons.items()]
            if counts.num_unlabelled:
                lines.append(
                    f"  {counts.num_unlabelled:,} images have no label: neither folder, column nor ground truth names their class"
                )
            expected = OFFICIAL_IMAGES.get(split)
            if expected is not None and counts.num_images != expected:
                lines.append(
                    f"  note: ILSVRC2012 has {expected:,} images in {split}; this archive is a part of it or not whole"
                )
        if self.num_rejected:
            lines.append(f"what was rejected and why: {storage.join(self.out, 'rejects')}")
        return [*lines, f"mine it with: jobs/mine.py --corpus imagenet={shards_folder(self.out)}"]


def ingest_imagenet(
    config: ImagenetConfig, session: Session, on_shard: Callable[[ShardResult], None] = lambda result: None
) -> ImagenetSummary:
    """Write the shards that are not there yet; killed and called again, it goes on with the tasks that have no marker.

    Args:
        config: What to read and where to write.
        session: Where tasks run.
        on_shard: Called with what became of each task of this call, in no particular order.

    Raises:
        ConfigError: an input cannot be used, or OUT holds shards of something else. DataError: too many rejects, or a tar that is cut short
            (everything else is written nevertheless), or an archive changed while it was read. ResourceError: the disk is full. TransientError: a store stayed unwell.
    """
    config.check()
    out = storage.normalise(config.out)
    labels = read_labels(class_names=config.class_names, devkit=config.devkit, val_labels=config.val_labels)
    names = frozenset(storage.list_names(shards_folder(out)))
    splits = {split for split in ("train", "val", "images") if getattr(config, split) is not None}
    # Before the plan, which writes into OUT what it found in the archives.
    _refuse_strangers(names, out, lambda task: task.partition("-")[0] in splits)
    parts, lost = _plan(config, out)
    labels = replace(labels, classes=labels.classes or _official_order(parts, labels))
    tasks = [
        ShardTask(out=out, name=name, split=split, part=part, labels_key=_labels_key(part, labels))
        for split, name, part in parts
    ]
    task_names = {task.name for task in tasks}
    _refuse_strangers(names, out, task_names.__contains__)
    tars = frozenset(name for name in names if _task_of(name) in task_names)
    marked = frozenset(done_names(done_folder(out)))
    with ThreadPoolExecutor(NUM_READING_THREADS) as pool:
        done = dict(
            zip(
                (task.name for task in tasks),
                pool.map(lambda task: read_done(task, tars) if task.name in marked else None, tasks),
                strict=True,
            )
        )
    results = [result for result in done.values() if result is not None]
    todo = [task for task in tasks if done[task.name] is None]
    if todo:
        for result in session.run_tasks(write_shard, todo, shared=[session.share(labels)]):
            results.append(result)
            on_shard(result)
    for name in tars - {name for result in results for name in result.tars}:
        # Of tasks that were done again from another source and need fewer parts now.
        storage.remove(storage.join(shards_folder(out), name))
    summary = _summarise(out, results, lost)
    storage.write_json(storage.join(out, "ingest.json"), summary.counts())
    _check_rejects(summary, config)
    return summary


_Part = tuple[str, str, ArchivePart | Shard]
"""A split, the name of a shard, and where its images are."""


def _plan(config: ImagenetConfig, out: str) -> tuple[list[_Part], dict[str, Counter[str]]]:
    """The shards of the ingest, and the reasons why members of the archives themselves have none, by split."""
    parts: list[_Part] = []
    lost: dict[str, Counter[str]] = {}
    if config.train is not None:
        found, lost["train"] = train_parts(config.train, out)
        parts += [("train", f"train-{part.wnid}", part) for part in found]
    if config.val is not None:
        found, lost["val"] = val_parts(config.val, out, config.images_per_shard)
        parts += [("val", f"val-{index:06d}", part) for index, part in enumerate(found)]
    if config.images is not None:
        shards = list_shards("imagenet", config.images)
        if shards[0].kind == "tar":
            raise ConfigError(
                f"expected class folders or Parquet files, found tars at {config.images}; mine them as they are, or give official archives "
                f"to --train and --val"
            )
        lost["images"] = Counter()
        parts += [("images", f"images-{shard.key}", shard) for shard in shards]
    return parts, lost


def _official_order(parts: Sequence[_Part], labels: Labels) -> dict[str, ClassName]:
    """The classes of ILSVRC2012 in their usual order where nobody named them, but all of them are there."""
    found = {part.wnid for _, _, part in parts if isinstance(part, ArchivePart) and part.wnid is not None}
    found |= {wnid for _, _, part in parts if not isinstance(part, ArchivePart) and (wnid := wnid_of(part.uri))}
    found |= set(labels.wnids.values())
    if len(found) != OFFICIAL_CLASSES:
        return {}
    return {wnid: ClassName(wnid, index) for index, wnid in enumerate(sorted(found))}


def _labels_key(part: ArchivePart | Shard, labels: Labels) -> str:
    """Changes with every label that the part's JSON files may hold, and with no other."""
    if isinstance(part, ArchivePart) and part.wnid is not None:
        return fingerprint(labels.record(part.wnid))
    classes = {wnid: [known.name, known.index] for wnid, known in labels.classes.items()}
    return fingerprint([classes, dict(labels.wnids) if isinstance(part, ArchivePart) else {}])


def _task_of(name: str) -> str:
    """The name of the task that could have made a file of the shards folder; empty where none could."""
    found = re.fullmatch(r"(.+?)(-part\d+)?\.tar", name)
    return found[1] if found else ""


def _refuse_strangers(names: frozenset[str], out: str, is_task: Callable[[str], bool]) -> None:
    """Raise ConfigError where the shards folder holds tars that this ingest does not write: mined together, images would count twice."""
    strange = sorted(
        name for name in names if name.endswith((".tar", ".tar.gz", ".tgz")) and not is_task(_task_of(name))
    )
    if strange:
        raise ConfigError(
            f"expected no shards but those of this ingest in {shards_folder(out)}, found {len(strange):,} others such as {strange[0]}; "
            f"choose another --out, give all that goes into this one in one call, or remove them yourself"
        )


def _summarise(out: str, results: Sequence[ShardResult], lost: dict[str, Counter[str]]) -> ImagenetSummary:
    splits = {}
    for split, reasons in lost.items():
        mine = [result for result in results if result.split == split]
        counts = Counter(reasons)
        for result in mine:
            counts.update(result.reasons)
        splits[split] = SplitCounts(
            num_shards=sum(len(result.tars) for result in mine),
            num_done_earlier=sum(len(result.tars) for result in mine if result.was_done),
            num_images=sum(result.num_images for result in mine),
            num_unlabelled=sum(result.num_unlabelled for result in mine),
            num_bytes=sum(result.num_bytes for result in mine),
            reasons=dict(sorted(counts.items())),
        )
    return ImagenetSummary(out=out, splits=splits)


def _check_rejects(summary: ImagenetSummary, config: ImagenetConfig) -> None:
    reasons: Counter[str] = Counter()
    for counts in summary.splits.values():
        reasons.update(counts.reasons)
    where = f"look at the tables in {storage.join(summary.out, 'rejects')}"
    # One such reject may stand for a thousand images that nobody has seen, so that a share says nothing.
    num_cut = reasons[RejectReason.SHARD_TRUNCATED]
    if num_cut and not config.allow_truncated:
        raise DataError(
            f"expected whole archives, found {num_cut:,} tars that are cut short or damaged ({summary.num_images:,} images before the damage are "
            f"written); {where}, fetch the archive again and repeat the command, or give --allow-truncated"
        )
    num_read = summary.num_images + summary.num_rejected
    if summary.num_rejected > config.max_reject_fraction * num_read:
        shown = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        raise DataError(
            f"expected at most {config.max_reject_fraction:.1%} of the images to be rejected, found {summary.num_rejected:,} of {num_read:,} "
            f"({shown}); {where}, or raise --max-reject-fraction"
        )
