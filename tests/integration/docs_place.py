"""A folder and a bucket with small stand-ins by the very names that the pages use, and a way to run their commands there, in this process."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import runpy
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray import storage
from mmvp_ray.job import choose
from tests.conftest import jpeg, write_tar
from tests.scripted_server import Asked, ScriptedServer

REPOSITORY = Path(__file__).resolve().parents[2]
BUCKET = "bucket"

STAND_INS = {
    "open_clip:ViT-L-14/openai": "open_clip:encoders/clip",
    "hf:facebook/dinov2-large": "hf:encoders/dinov2",
    "hf:/models/siglip": "miniature:clip",
    "hf:llava-hf/llava-1.5-13b-hf": "hf:models/llava-1.5-7b-hf",
    "hf:Salesforce/instructblip-vicuna-13b": "hf:models/instructblip",
    "albef:ALBEF.pth,google-bert/bert-base-uncased": "miniature:clip",
    "cuda": "cpu",
    # Only the published MMVP has two keys.
    "original": "as-found",
    "corrected": "as-found",
}
"""What stands for what a machine without network and GPU lacks."""
ENDPOINTS = ("http://gpu:8000/v1", "http://127.0.0.1:8000/v1", "https://api.openai.com/v1")
"""The scripted server stands for these."""
WNIDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus"}


@dataclass
class Place:
    """Where commands run.

    Attributes:
        folder: The current folder.
        server: Every endpoint.
        said: What each command printed.
    """

    folder: Path
    server: ScriptedServer
    said: dict[str, str] = field(default_factory=dict)

    def run(self, command: str, more: str = "") -> str:
        """Run a command as a page has it, with stand-ins and with further flags that make it small; gives what it printed."""
        words = [*command.split(), *more.split()]
        words = [
            self.server.base_url if word in (*ENDPOINTS, "SERVER") else STAND_INS.get(word, word) for word in words
        ]
        out, told = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
                code = run_job(words[0].removesuffix(".py"), words[1:])
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not error.code:
                code = 0
            else:
                raise AssertionError(
                    f"{' '.join(words)}: {error}\n{out.getvalue()[-500:]}{told.getvalue()[-1500:]}"
                ) from error
        assert code == 0, f"{' '.join(words)}: {code}\n{told.getvalue()[-1500:]}"
        self.said[command] = out.getvalue()
        return out.getvalue()

    def run_all(self, commands: dict[str, str]) -> None:
        """Run commands in order, with what makes each small."""
        for command, more in commands.items():
            self.run(command, more)


@functools.cache
def _job(name: str) -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "jobs" / f"{name}.py"))


def run_job(name: str, words: Sequence[str]) -> int:
    """A job's main in this process; its exit code."""
    job = _job(name)
    if "COMMANDS" in job:
        return choose(job["COMMANDS"], list(words), description=job["__doc__"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"jobs/{name}.py", *words])
        return int(job["main"]() or 0)


def answer(asked: Asked) -> str:
    """A model, a finder of patterns, a voter and a judge in one."""
    if asked.images:
        return "Yes" if "(a)" not in asked.prompt else "(a)"
    if "JSON list of objects" in asked.prompt:
        return json.dumps([{"name": "Color and Appearance", "definition": "Which colour it has."}])
    if "primary" in asked.prompt:
        return json.dumps({"primary": "Color and Appearance", "others": []})
    return "8 4\nbecause"


def make_place(folder: Path, server: ScriptedServer) -> Place:
    """Pictures, shards, benchmarks, recipes and encoders; what models and training need is made by their own tests."""
    import boto3

    from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm
    from tests.integration.encoders_small_models import save_hf, save_open_clip

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "photos").mkdir()
    for number in range(20):
        (folder / f"photos/{number}.jpg").write_bytes(jpeg(number))
    members = [(f"{number:05d}.jpg", jpeg(100 + number)) for number in range(20)]
    write_tar(folder / "laion.tar", members)
    for name in ("00000.tar", "shards/00000.tar"):
        storage.write_bytes(f"s3://{BUCKET}/laion-aesthetics/{name}", (folder / "laion.tar").read_bytes())
    make_mmvp(folder / "MMVP", num_pairs=9)
    make_mmvp_vlm(folder / "MMVP_VLM")
    save_open_clip(folder / "encoders/clip")
    save_hf(folder / "encoders/dinov2", "dinov2")
    (folder / "my_clip").symlink_to(save_hf(folder / "encoders/hf_clip", "clip"))
    (folder / "my_dino").symlink_to(folder / "encoders/dinov2")
    return Place(folder, server)


def write_imagenet(folder: Path) -> None:
    """ImageNet's archives with two classes."""
    import numpy as np
    import scipy.io

    train = []
    for row, wnid in enumerate(WNIDS):
        images = [(f"{wnid}_{number}.JPEG", jpeg(300 + 20 * row + number)) for number in range(8)]
        write_tar(folder / f"{wnid}.tar", images)
        train.append((f"{wnid}.tar", (folder / f"{wnid}.tar").read_bytes()))
    write_tar(folder / "ILSVRC2012_img_train.tar", train)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 9)]
    write_tar(folder / "ILSVRC2012_img_val.tar", [(name, jpeg(400 + row)) for row, name in enumerate(names)])
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(float(number), wnid, name, "a fish", 0.0) for number, (wnid, name) in enumerate(WNIDS.items(), 1)]
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": np.array(rows, dtype=kinds)})
    truth = "".join(f"{1 + row % 2}\n" for row in range(len(names))).encode()
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in {
            "data/meta.mat": mat.getvalue(),
            "data/ILSVRC2012_validation_ground_truth.txt": truth,
        }.items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_laion_metadata() -> None:
    """Metadata as LAION's, where the page and the recipe have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    urls = [f"https://example.org/{number}.jpg" for number in range(10)]
    columns = {"pwatermark": 0.1, "punsafe": 0.1, "AESTHETIC_SCORE": 6.5, "WIDTH": 512, "HEIGHT": 512}
    table = pa.table({"URL": urls, "TEXT": urls, **{name: [value] * 10 for name, value in columns.items()}})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    for name in ("laion2B-en-aesthetic", "laion2B-en-aesthetic-metadata"):
        storage.write_bytes(f"s3://{BUCKET}/{name}/part-00000.parquet", sink.getvalue())


def write_questions(folder: Path) -> None:
    """POPE's and LLaVA-Bench's files about one picture, by their published names."""
    (folder / "val2014").mkdir()
    (folder / "val2014/1.jpg").write_bytes(jpeg(1))
    (folder / "POPE/output/coco").mkdir(parents=True)
    asked = {"image": "1.jpg", "text": "Is there a dog in the image?"}
    rows = [asked | {"question_id": number, "label": ("yes", "no")[number % 2]} for number in range(4)]
    for split in ("random", "popular", "adversarial"):
        write_lines(folder / f"POPE/output/coco/coco_pope_{split}.json", rows)
    kinds = list(enumerate(("conv", "detail", "complex")))
    write_lines(
        folder / "qa90_questions.jsonl",
        [{"question_id": i, "image": "1.jpg", "text": "what is it ?", "category": kind} for i, kind in kinds],
    )
    write_lines(
        folder / "qa90_gpt4_answer.jsonl",
        [{"question_id": i, "text": "A dog.", "category": kind} for i, kind in kinds],
    )
    box = {"category": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]}
    write_lines(
        folder / "caps_boxes_coco2014_val_80.jsonl", [{"image": "1.jpg", "captions": ["a dog"], "instances": [box]}]
    )


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("\n".join(map(json.dumps, rows)))
