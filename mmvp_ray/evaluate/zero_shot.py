"""ImageNet-style zero-shot accuracy on any labelled corpus: the column beside MMVP-VLM in the paper's Table 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mmvp_ray import storage
from mmvp_ray.cluster import Session
from mmvp_ray.config import fingerprint
from mmvp_ray.encoders import EncoderSpec
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate.encode_items import task_cpus
from mmvp_ray.evaluate.encode_task import Placement
from mmvp_ray.evaluate.item_vectors import write_vectors
from mmvp_ray.evaluate.prompt_ensembles import FROM_LABELS, classes_from_labels, read_classes, read_templates
from mmvp_ray.evaluate.rates import Rate, wilson_rate
from mmvp_ray.evaluate.zero_shot_images import (
    TOP,
    ClassifierJob,
    Counts,
    ImagesJob,
    classifier_rows,
    classify,
    labels_in,
)
from mmvp_ray.sources import Shard, list_shards

BUNDLE_BYTES = 256 << 20
"""Shards of one task together: some 2,000 photographs; the folders of ImageNet's classes are far smaller, its tars larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotConfig:
    """Which labelled images are classified, and into what."""

    labelled_images: str | None = None
    """Folder of class folders, or webdataset tars or Parquet with labels (any path or URL that jobs/mine.py takes): adds the zero-shot column."""
    classes: str = "imagenet"
    """imagenet; labels (those found in the corpus); or a JSON or YAML file of `id: name` or `id: [names]`."""
    templates: str = "openai_80"
    """Prompts around each name: openai_80, openai_7, plain, or a JSON or YAML list of texts with {}."""
    label_field: str | None = None
    """Field of the record that holds the label; unless given: wnid, then label or .cls, then the file's own name."""
    max_labelled_images: int | None = None
    """Use at most so many, spread evenly over the shards."""
    max_reject_fraction: float = 0.05
    """Fail when a larger share of the labelled images cannot be used."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range."""
        if self.max_labelled_images is not None and self.max_labelled_images < 1:
            raise ConfigError(
                f"expected at least 1, found {self.max_labelled_images} in --max-labelled-images; give a positive number"
            )
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ConfigError(
                f"expected a fraction between 0 and 1, found {self.max_reject_fraction} in --max-reject-fraction; the default is 0.05"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotScore:
    """One encoder's zero-shot accuracy.

    Attributes:
        top1: Images whose own class scores highest; of equal scores the class with the lowest index counts as the highest.
        top5: Images whose own class is among the five highest; None where there are no more than five classes.
        num_classes: Classes to choose from, whether the corpus has images of them or not.
        num_templates: Prompts for each name.
        num_unreadable: Images that could not be decoded or embedded; they are not in top1.
        num_unlabelled: Images whose label names no class; they are not in top1.
        examples: A few of those, with the reason.
    """

    top1: Rate
    top5: Rate | None
    num_classes: int
    num_templates: int
    num_unreadable: int
    num_unlabelled: int
    examples: tuple[str, ...]


def zero_shot(
    config: ZeroShotConfig,
    session: Session,
    specs: Sequence[EncoderSpec],
    placement: Placement,
    *,
    out: str,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, ZeroShotScore]:
    """Classify the labelled images with every encoder; what is in `out` already is not done again.

    Args:
        config: Images, classes and prompts; `labelled_images` is given.
        session: Where tasks run: one for each encoder and some 256 MB of shards.
        specs: Encoders of the CLIP family.
        placement: Where they run.
        out: Folder of the run.
        notify: Takes lines about the progress.

    Returns:
        Scores by the encoders' names.

    Raises:
        ConfigError: no images, classes or templates. DataError: too many images cannot be used.
    """
    assert config.labelled_images is not None
    shards = list_shards("labelled", config.labelled_images, max_images=config.max_labelled_images)
    bundles = bundled(shards)
    cpus = task_cpus(session, placement)
    templates = read_templates(config.templates)
    if config.classes == FROM_LABELS:
        found = session.run_tasks(labels_in, [(bundle, config.label_field) for bundle in bundles])
        classes = classes_from_labels([label for labels in found for label in labels])
    else:
        classes = read_classes(config.classes)
    notify(f"zero-shot: {len(classes.ids):,} classes, {len(templates)} templates, {len(shards):,} shards")

    asked = fingerprint([list(classes.ids), [list(names) for names in classes.names], list(templates)])
    classifiers = {
        spec.slug: storage.join(out, "zero_shot", spec.slug, f"classifier-{asked}.parquet") for spec in specs
    }
    texts = [
        ClassifierJob(spec=spec, placement=placement, classes=classes, templates=templates, to=classifiers[spec.slug])
        for spec in specs
        if not storage.exists(classifiers[spec.slug])
    ]
    for slug in session.run_tasks(_make_classifier, texts, num_cpus=cpus, num_gpus=placement.num_gpus):
        notify(f"zero-shot: classifier of {slug}")

    places = {
        (spec.slug, number): storage.join(
            out,
            "zero_shot",
            spec.slug,
            f"counts-{fingerprint([asked, config.label_field, [_content(shard) for shard in bundle]])}.json",
        )
        for spec in specs
        for number, bundle in enumerate(bundles)
    }
    done = {spec.slug: set(storage.list_names(storage.join(out, "zero_shot", spec.slug))) for spec in specs}
    images = [
        ImagesJob(
            spec=spec,
            placement=placement,
            classes=classes,
            label_field=config.label_field,
            shards=bundle,
            classifier=classifiers[spec.slug],
            to=places[spec.slug, number],
        )
        for spec in specs
        for number, bundle in enumerate(bundles)
        if places[spec.slug, number].rsplit("/", 1)[-1] not in done[spec.slug]
    ]
    for slug, num_images in session.run_tasks(classify, images, num_cpus=cpus, num_gpus=placement.num_gpus):
        notify(f"zero-shot: {num_images:,} images by {slug}")
    return {
        spec.name: _score(
            config,
            spec,
            [storage.read_json(places[spec.slug, number]) for number in range(len(bundles))],
            num_classes=len(classes.ids),
            num_templates=len(templates),
        )
        for spec in specs
    }


def _content(shard: Shard) -> list[str]:
    """What images and labels of a shard depend on."""
    return [shard.key, *([shard.records_etag] if shard.records_etag else [])]


def bundled(shards: Sequence[Shard], limit_bytes: int = BUNDLE_BYTES) -> list[tuple[Shard, ...]]:
    """Consecutive shards of together at most `limit_bytes` (or a single larger one), from the listing alone."""
    return list(_bundles(shards, limit_bytes))


def _bundles(shards: Sequence[Shard], limit_bytes: int) -> Iterator[tuple[Shard, ...]]:
    held: list[Shard] = []
    for shard in shards:
        if held and sum(one.num_bytes for one in held) + shard.num_bytes > limit_bytes:
            yield tuple(held)
            held = []
        held.append(shard)
    if held:
        yield tuple(held)


def _make_classifier(job: ClassifierJob) -> str:
    write_vectors(job.to, job.classes.ids, classifier_rows(job))
    return job.spec.slug


def _score(
    config: ZeroShotConfig, spec: EncoderSpec, parts: list[dict[str, object]], *, num_classes: int, num_templates: int
) -> ZeroShotScore:
    names = {field.name for field in dataclasses.fields(Counts)}
    counts = Counts()
    for part in parts:
        values = {key: value for key, value in part.items() if key in names}
        values["examples"] = tuple(values["examples"])  # type: ignore[arg-type]
        counts.add(Counts(**values))  # type: ignore[arg-type]
    num_lost = counts.num_unreadable + counts.num_unlabelled
    total = counts.num_images + num_lost
    if not counts.num_images or num_lost > config.max_reject_fraction * total:
        raise DataError(
            f"expected at least {1 - config.max_reject_fraction:.0%} of the images at {config.labelled_images} to be readable and labelled, "
            f"found {counts.num_unreadable:,} unreadable and {counts.num_unlabelled:,} without a class of {total:,} with {spec.name} "
            f"({'; '.join(counts.examples[:2])}); check --label-field and --classes, or raise --max-reject-fraction"
        )
    return ZeroShotScore(
        top1=wilson_rate(counts.num_top1, counts.num_images),
        top5=wilson_rate(counts.num_top5, counts.num_images) if num_classes > TOP else None,
        num_classes=num_classes,
        num_templates=num_templates,
        num_unreadable=counts.num_unreadable,
        num_unlabelled=counts.num_unlabelled,
        examples=counts.examples,
    )
