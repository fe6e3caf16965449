"""Pairs come in once, broken ones are counted, unsafe ones are known, and pictures are kept byte for byte beside a view of pixels alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mmvp_ray.annotate.annotating import find_pair
from mmvp_ray.annotate.config import ImportConfig
from mmvp_ray.annotate.importing import FoundPair, Picture, import_pairs, is_unsafe
from mmvp_ray.annotate.pictures import MAX_VIEW_PX, view_bytes
from mmvp_ray.annotate.workspace import Workspace, create_workspace
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.pipeline import annotation
from mmvp_ray.sources.piece import image_id
from tests.conftest import jpeg
from tests.unit.annotate_workspace import PHOTOGRAPHER, picture


def pair(rank: int, a: bytes, b: bytes, **more: Any) -> FoundPair:
    sides = [
        Picture(data=data, uri="s3://data/x.tar", member=f"{rank}{side}.jpg", **more)
        for side, data in (("a", a), ("b", b))
    ]
    return FoundPair(rank=rank, cos_near=0.97, cos_far=0.3, a=sides[0], b=sides[1])


def bring(workspace: Workspace, *pairs: FoundPair, source: str = "s3://runs/one") -> Any:
    return import_pairs(workspace, pairs, source=source, title="One", near="clip", far="dino")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path / "work")


def test_each_pair_once_however_it_comes(workspace: Workspace) -> None:
    pairs = [pair(1, picture(1), picture(2)), pair(2, picture(3), picture(4), is_unsafe=True)]
    found = bring(workspace, *pairs)
    assert (found.num_new, found.num_known, found.num_unsafe) == (2, 0, 1)
    # The same run again, and another one that found the first pair the other way round.
    again = bring(workspace, *pairs)
    turned = bring(workspace, pair(1, picture(2), picture(1)), pair(2, picture(1), picture(3)), source="s3://runs/two")
    assert (again.num_new, again.num_known, turned.num_new, turned.num_known) == (0, 2, 1, 1)
    assert len(workspace.rows("SELECT * FROM batches")) == 2 and len(workspace.rows("SELECT * FROM pairs")) == 3
    assert find_pair(workspace, 2).a["is_unsafe"] == 1 and find_pair(workspace, 1).a["is_unsafe"] == 0


def test_what_a_later_source_knows_of_an_image_is_learnt(workspace: Workspace) -> None:
    bring(workspace, pair(1, picture(1), picture(2), license="cc0-1.0"))
    later = pair(1, picture(1), picture(3), is_unsafe=True, license="other", caption="a dog")
    assert bring(workspace, later, source="s3://runs/two").num_unsafe == 1
    found = find_pair(workspace, 1).a
    assert (found["is_unsafe"], found["license"], found["caption"]) == (1, "cc0-1.0", "a dog")
    # What was called unsafe once stays so.
    bring(workspace, pair(1, picture(1), picture(4)), source="s3://runs/three")
    assert find_pair(workspace, 1).a["is_unsafe"] == 1


def test_bytes_are_kept_and_views_hold_pixels_alone(workspace: Workspace) -> None:
    out = io.BytesIO()
    Image.new("RGB", (MAX_VIEW_PX + 100, 50), "red").save(out, "PNG")
    bring(workspace, pair(1, picture(1), out.getvalue()))
    found = find_pair(workspace, 1)
    kept = (workspace.images / f"{found.a['image_id']}.jpg").read_bytes()
    view = view_bytes(workspace, found.a["image_id"])
    assert kept == picture(1) and PHOTOGRAPHER in kept and PHOTOGRAPHER not in view
    shown = Image.open(io.BytesIO(view))
    assert (shown.format, shown.size) == ("WEBP", (24, 16))
    # Small pictures lose no pixel; large ones are made smaller.
    assert shown.convert("RGB").tobytes() == Image.open(io.BytesIO(picture(1))).convert("RGB").tobytes()
    assert max(Image.open(io.BytesIO(view_bytes(workspace, found.b["image_id"]))).size) == MAX_VIEW_PX
    assert (found.b["width_px"], found.b["extension"]) == (MAX_VIEW_PX + 100, "png")


def test_what_cannot_be_shown_is_counted_by_reason(workspace: Workspace) -> None:
    found = bring(
        workspace, pair(1, picture(1), b"no image"), pair(2, jpeg(5)[:200], picture(2)), pair(3, picture(1), picture(2))
    )
    assert found.num_new == 1 and sum(found.broken.values()) == 2
    assert found.broken["not_an_image"] == 1
    event = workspace.row("SELECT content FROM events WHERE kind = 'imported'")
    assert event is not None and json.loads(event["content"])["broken"] == dict(found.broken)


def test_a_lost_shard_costs_its_own_pairs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {}
    for number in range(8):
        data, shard = picture(number), tmp_path / f"{number // 4}.tar"
        with shard.open("ab") as file:
            places[image_id(data)] = {
                "image_id": image_id(data), "uri": str(shard), "member": f"{number}.jpg", "offset": file.tell(), "num_bytes": len(data),
                "caption": None, "label": None, "url": None, "license": None, "metadata": "{}",
            }  # fmt: skip
            file.write(data)
    keys = list(places)
    rows = [
        {"rank": rank, "cos_near": 0.96, "cos_far": 0.3, "image_id_a": keys[a], "image_id_b": keys[b]}
        for rank, (a, b) in enumerate([(0, 4), (1, 2), (5, 3), (6, 7)], start=1)
    ]
    encoders = {"near": {"name": "n"}, "far": {"name": "f"}}
    run = SimpleNamespace(
        url="/run", pairs=lambda: pa.Table.from_pylist(rows), places=lambda _: places, manifest={"encoders": encoders}
    )
    monkeypatch.setattr(annotation, "open_run", lambda _: run)
    config = ImportConfig(workspace=str(tmp_path / "work"), run="/run")
    first, second = ((tmp_path / name).read_bytes() for name in ("0.tar", "1.tar"))
    (tmp_path / "0.tar").unlink()
    # Other bytes lie where one image of the other shard was.
    start, num = (places[keys[5]][name] for name in ("offset", "num_bytes"))
    (tmp_path / "1.tar").write_bytes(second[:start] + bytes(num) + second[start + num :])
    lines = annotation.import_run(config)
    assert lines[0].startswith("1 new pairs from run")
    assert f"2 pairs left out: {tmp_path}/0.tar is gone or changed since it was mined" in lines
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"found none of 4, .* bring the shards back"):
        annotation.import_run(replace(config, workspace=str(tmp_path / "other")))
    (tmp_path / "0.tar").write_bytes(first)
    (tmp_path / "1.tar").write_bytes(second)
    assert annotation.import_run(config)[0].startswith("3 new pairs from run, 1 known")


@pytest.mark.parametrize("name", ["", "..", "../annotate.sqlite", "0" * 64, "A" * 64, "%2e%2e"])
def test_views_are_asked_for_by_id_alone(workspace: Workspace, name: str) -> None:
    with pytest.raises(ConfigError, match="expected an image of this workspace"):
        view_bytes(workspace, name)


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        (None, False),
        ("no JSON", False),
        ("[1]", False),
        ("{}", False),
        ('{"punsafe": 0.9}', True),
        ('{"punsafe": 0.2, "NSFW": "UNLIKELY"}', False),
        ('{"NSFW": "NSFW"}', True),
        ('{"nsfw": "unsure"}', True),
        ('{"NSFW": null}', False),
        ('{"punsafe": true}', False),
    ],
)
def test_what_laion_calls_unsafe(metadata: str | None, wanted: bool) -> None:
    assert is_unsafe(metadata) is wanted
