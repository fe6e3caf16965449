"""Zero-shot classification without models: classes, templates, labels, ranks and bundles of shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.prompt_ensembles import (
    Classes,
    class_of,
    classes_from_labels,
    prompts_of,
    read_classes,
    read_templates,
)
from mmvp_ray.evaluate.zero_shot import ZeroShotConfig, bundled
from mmvp_ray.evaluate.zero_shot_images import ranks
from mmvp_ray.sources import Sample, Shard

BIRDS = Classes(
    ids=("n01440764", "n02012849", "n03126707"), names=(("tench", "Tinca tinca"), ("crane",), ("crane", "lift"))
)


def sample(*, label: str | None = None, member: str = "x.jpg", **record: object) -> Sample:
    metadata = json.dumps(record) if record else None
    return Sample(uri="u", member=member, offset=None, data=None, label=label, metadata=metadata)


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("n02012849", 1),
        ("N02012849", 1),
        ("2", 2),
        ("tench", 0),
        ("TINCA_tinca", 0),
        ("lift", 2),
        # Two classes have this name: it names none.
        ("crane", None),
        ("3", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_label_means(label: str | None, row: int | None) -> None:
    assert BIRDS.row_of(label) == row


def test_where_ids_are_numbers_a_number_is_an_id_and_no_index() -> None:
    classes = Classes(ids=("1", "2", "3"), names=(("a",), ("b",), ("c",)))
    assert [classes.row_of(text) for text in ("1", "2", "3", "0")] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (sample(label="crane", wnid="n03126707"), 2),
        (sample(label="tench", wnid="n99999999"), 0),
        (sample(label="nothing", member="a/n02012849_18.JPEG"), 1),
        (sample(label="0"), 0),
        (sample(member="photo.jpg"), None),
    ],
)
def test_the_class_of_an_image(found: Sample, row: int | None) -> None:
    assert class_of(found, BIRDS, None) == row


def test_a_named_field_alone_decides() -> None:
    found = sample(label="tench", wnid="n01440764", kind="lift")
    assert class_of(found, BIRDS, "kind") == 2
    assert class_of(found, BIRDS, "label") == 0
    assert class_of(found, BIRDS, "other") is None


def test_a_file_of_classes_with_one_or_several_names(tmp_path: Path) -> None:
    for text in ('{"a": "cat", "b": ["dog", "hound"]}', "a: cat\nb: [dog, hound]\n"):
        path = tmp_path / "classes.json"
        path.write_text(text)
        found = read_classes(str(path))
        assert (found.ids, found.names) == (("a", "b"), (("cat",), ("dog", "hound")))
    path.write_text('["cat", ["dog", "hound"]]')
    assert read_classes(str(path)).ids == ("0", "1")


@pytest.mark.parametrize(
    "text",
    [
        "[cat]",
        "cat",
        "{a: cat, A: dog}",
        "{a: 1, b: 2}",
        "{a: cat, b: []}",
        "{a: cat, b: no}",
        "{no: cat, b: dog}",
        "[",
        "",
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="found"):
        read_classes(str(path))


def test_a_missing_file_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check --classes"):
        read_classes(str(tmp_path / "none.json"))


def test_labels_become_classes_with_readable_names() -> None:
    found = classes_from_labels(["sea_lion", "Sea lion", "cat"])
    assert found.names == (("cat",), ("sea lion",))
    assert [found.row_of(label) for label in ("cat", "sea_lion", "Sea lion")] == [0, 1, 1]
    with pytest.raises(ConfigError, match="two different labels"):
        classes_from_labels(["cat", "CAT"])


def test_templates_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text("- a photo of a {}.\n- '{}!'\n")
    templates = read_templates(str(path))
    # Names are put in as they are: braces in them are no places.
    assert prompts_of(["cat", "{0}"], templates) == ["a photo of a cat.", "a photo of a {0}.", "cat!", "{0}!"]
    assert read_templates("plain") == ("a photo of a {}.",)


@pytest.mark.parametrize("text", ["- a photo\n", "- '{} and {}'\n", "[]", "a: b", "- 1"])
def test_templates_without_one_place_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"one \{\} each"):
        read_templates(str(path))


def test_unknown_templates_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="openai_80, openai_7, plain"):
        read_templates("openai")


@given(st.integers(2, 7).flatmap(lambda c: st.lists(st.lists(st.integers(0, 3), min_size=c, max_size=c), min_size=1)))
def test_ranks_are_those_of_a_stable_sort(rows: list[list[int]]) -> None:
    scores = np.array(rows, dtype=np.float32)
    right = np.arange(len(rows)) % scores.shape[1]
    expected = [
        sorted(range(len(row)), key=lambda c: (-row[c], c)).index(r) for row, r in zip(rows, right, strict=True)
    ]
    assert ranks(scores, right.astype(np.int64)).tolist() == expected


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_bundles_keep_all_shards_in_order_and_their_limit(sizes: list[int], limit: int) -> None:
    shards = [Shard(corpus="c", kind="tar", uri=str(k), num_bytes=size, etag="") for k, size in enumerate(sizes)]
    found = bundled(shards, limit)
    assert [shard for bundle in found for shard in bundle] == shards
    assert all(len(bundle) == 1 or sum(shard.num_bytes for shard in bundle) <= limit for bundle in found)


@pytest.mark.parametrize("values", [{"max_labelled_images": 0}, {"max_reject_fraction": 1.5}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="found"):
        ZeroShotConfig(**values).check()  # type: ignore[arg-type]
