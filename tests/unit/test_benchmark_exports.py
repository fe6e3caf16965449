"""Exports as lmms-eval, VLMEvalKit and the datasets library read them: loaders re-implemented after their sources, nothing copied."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from mmvp_ray.benchmark import FORMS, Benchmark, Question, collect, export_benchmark, open_benchmark
from mmvp_ray.benchmark.embedded import ROWS_PER_GROUP
from mmvp_ray.benchmark.export import plain_name, refuse_existing
from mmvp_ray.benchmark.exported import lmms_eval_utils, score_pairs
from mmvp_ray.benchmark.huggingface import card, export_huggingface
from mmvp_ray.benchmark.lmms_eval import export_lmms_eval
from mmvp_ray.benchmark.vlmevalkit import export_vlmevalkit
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm

# --- lmms-eval -----------------------------------------------------------------------------------------------------------------------


def load_task(path: Path) -> dict[str, Any]:
    """A task file as lmms-eval loads it (EvolvingLMMs-Lab/lmms-eval 75571cfe, lmms_eval/utils.py).

    load_yaml_config, lines 1017-1056: yaml.full_load with a constructor for `!function`. import_function, lines 928-951: <module>.py beside
    the YAML is executed and the function taken from it. _resolve_local_data_files, lines 967-987: for the builder "parquet" a relative path
    becomes absolute if such a file lies beside the YAML.
    """

    class Loader(yaml.FullLoader):
        pass

    def import_function(loader: Any, node: Any) -> Any:
        module_name, function = loader.construct_scalar(node).split(".")
        spec = importlib.util.spec_from_file_location(module_name, path.parent / f"{module_name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, function)

    Loader.add_constructor("!function", import_function)
    config = yaml.load(path.read_bytes(), Loader=Loader)
    files = config["dataset_kwargs"]["data_files"]
    assert config["dataset_path"] == "parquet"
    for split, value in files.items():
        assert not Path(value).is_absolute()
        assert (path.parent / value).is_file()
        files[split] = str(path.parent / value)
    return dict(config)


def load_docs(path: str) -> list[dict[str, Any]]:
    """A Parquet file as datasets gives it (huggingface/datasets b7cb10b, src/datasets/features/features.py lines 1950-1981).

    Features come from the schema's metadata key "huggingface", each only where the file's field equals the feature's own Arrow field, which
    for an Image is a nullable struct<bytes: binary, path: string>; it decodes to a PIL image.
    """
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    images = [name for name, feature in features.items() if feature["_type"] == "Image"]
    own = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = table.to_pylist()
    for name in images:
        assert table.schema.field(name) == pa.field(name, own)
        for row in rows:
            row[name] = Image.open(io.BytesIO(row[name]["bytes"]))
    return rows


def run_task(folder: Path, task: str, answer: Callable[[str, Any, Mapping[str, Any]], str]) -> dict[str, float]:
    """Ask and score as lmms_eval/api/task.py does (75571cfe): lmms_eval_specific_kwargs lines 887-894; doc_to_visual lines 1484-1497;
    doc_to_text lines 1424-1432; process_results gets the document without its Image columns (lines 1168-1185); aggregations get the list of
    each metric's records (evaluator_utils.py lines 116-126)."""
    config = load_task(folder / f"{task}.yaml")
    assert config["task"] == task
    docs = load_docs(config["dataset_kwargs"]["data_files"][config["test_split"]])
    words = {**config["lmms_eval_specific_kwargs"], **config["lmms_eval_specific_kwargs"]["default"]}
    records: dict[str, list[Any]] = {}
    for doc in docs:
        (image,) = config["doc_to_visual"](doc)
        assert image.mode == "RGB"
        text = answer(config["doc_to_text"](doc, words), image, doc)
        without_images = {name: value for name, value in doc.items() if not isinstance(value, Image.Image)}
        assert config["doc_to_target"](without_images) == doc["answer"]
        for metric, record in config["process_results"](without_images, [text]).items():
            records.setdefault(metric, []).append(record)
    return {entry["metric"]: entry["aggregation"](records[entry["metric"]]) for entry in config["metric_list"]}


@pytest.fixture
def made(tmp_path: Path) -> Benchmark:
    return make_mmvp(tmp_path / "made", num_pairs=10, seed=2)


def test_lmms_eval_asks_every_question_with_its_own_image(made: Benchmark, tmp_path: Path) -> None:
    export_lmms_eval(str(tmp_path / "x"), made, task="my_pairs")
    asked = []

    def answer(prompt: str, image: Any, doc: Mapping[str, Any]) -> str:
        asked.append((prompt, image.tobytes()))
        return str(doc["answer"])

    assert run_task(tmp_path / "x", "my_pairs", answer) == {
        "pair_accuracy": 1.0,
        "question_accuracy": 1.0,
        "unparsed": 0.0,
        "failed_requests": 0.0,
    }
    assert [prompt for prompt, _ in asked] == [
        f"{q.text}\nA. {q.options[0]}\nB. {q.options[1]}\nAnswer with the option's letter from the given choices directly."
        for q in made.questions
    ]
    assert [pixels for _, pixels in asked] == [Image.open(q.image_uri).convert("RGB").tobytes() for q in made.questions]


def test_lmms_eval_scores_are_those_of_a_plain_count(made: Benchmark, tmp_path: Path) -> None:
    """A model that is right where a rule says so: pairs by hand, constant answers get no pair, failed requests and mumbling are seen."""
    export_lmms_eval(str(tmp_path / "x"), made, task="t")
    wrong = {"1/a", "1/b", "4/b"}

    def mostly_right(_prompt: str, _image: Any, doc: Mapping[str, Any]) -> str:
        key = f"{doc['pair_id']}/{doc['item']}"
        if key == "7/a":
            return "[LMMS_EVAL_REQUEST_FAILED after 5 retries] timeout"
        if key == "9/b":
            return "A lovely picture, I cannot say."
        letter = "AB"["AB".index(doc["answer"]) ^ (key in wrong)]
        return f"The answer is ({letter.lower()})."

    scores = run_task(tmp_path / "x", "t", mostly_right)
    assert scores["failed_requests"] == 1 / 20
    assert scores["unparsed"] == 1 / 19
    assert scores["question_accuracy"] == 15 / 19
    assert scores["pair_accuracy"] == 6 / 9
    constant = run_task(tmp_path / "x", "t", lambda *_: "A")
    assert constant["pair_accuracy"] == 0
    assert constant["question_accuracy"] == 0.5
    dead = run_task(tmp_path / "x", "t", lambda *_: "[LMMS_EVAL_REQUEST_FAILED after 5 retries]")
    assert dead["failed_requests"] == 1
    assert math.isnan(dead["pair_accuracy"])


def test_two_tasks_share_a_folder(made: Benchmark, tmp_path: Path) -> None:
    flipped = collect([replace(q, answer=1 - q.answer) for q in made.questions], name="flipped")
    export_lmms_eval(str(tmp_path / "x"), made, task="one")
    export_lmms_eval(str(tmp_path / "x"), flipped, task="two")
    right = {(q.pair_id, q.item): "AB"[q.answer] for q in made.questions}

    def answer(_prompt: str, _image: Any, doc: Mapping[str, Any]) -> str:
        return right[doc["pair_id"], doc["item"]]

    assert run_task(tmp_path / "x", "one", answer)["pair_accuracy"] == 1
    assert run_task(tmp_path / "x", "two", answer)["pair_accuracy"] == 0


def test_standard_errors_of_lmms_eval_are_of_questions_clustered_by_pair(made: Benchmark, tmp_path: Path) -> None:
    """lmms_eval/evaluator_utils.py (75571cfe), lines 133-165: numbers are records' `score`, clusters their `cluster_key`; records without a
    score give "N/A", which is right for pairs: a pair has no record of its own."""
    export_lmms_eval(str(tmp_path / "x"), made, task="t")
    config = load_task(tmp_path / "x" / "t.yaml")
    doc = load_docs(config["dataset_kwargs"]["data_files"]["test"])[0]
    found = config["process_results"](doc, [doc["answer"]])
    assert found["question_accuracy"]["score"] == 1.0
    assert found["question_accuracy"][config["cluster_key"]] == "1"
    assert "score" not in found["pair_accuracy"]


def test_the_lmms_eval_folder_needs_nothing_of_ours(made: Benchmark, tmp_path: Path) -> None:
    export_lmms_eval(str(tmp_path / "x"), made, task="t")
    program = (
        "import sys, utils; assert not [name for name in sys.modules if 'mmvp' in name or name in ('numpy', 'torch')]"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {program}"], cwd=tmp_path / "x", check=True
    )


def test_more_than_two_items_and_options(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 10)).save(picture)
    items = [
        Question(
            pair_id="p", item=item, image_uri=str(picture), text="How many?", options=("One", "Two", "Three"), answer=k
        )
        for k, item in enumerate("abc")
    ]
    export_lmms_eval(str(tmp_path / "x"), collect(items, name="n"), task="t")
    right = run_task(tmp_path / "x", "t", lambda _p, _i, doc: doc["answer"])
    assert right["pair_accuracy"] == 1
    assert run_task(tmp_path / "x", "t", lambda *_: "C")["question_accuracy"] == pytest.approx(1 / 3)


ANSWERS = [
    ("A", "A"),
    ("b", "B"),
    ("B.", "B"),
    ("(a)", "A"),
    ("(B).", "B"),
    ("[b]", "B"),
    ("**B**", "B"),
    (" A\n", "A"),
    ("B)", "B"),
    ("C", None),
    ("A. Sitting", "A"),
    ("A) Sitting", "A"),
    ("(b) Standing", "B"),
    ("B Standing", "B"),
    ("B: it stands.", "B"),
    ("Sitting", "A"),
    ("standing.", "B"),
    ("The answer is A.", "A"),
    ("The answer is (b)", "B"),
    ("The correct answer is B, because it stands on its legs.", "B"),
    ("Answer: A", "A"),
    ("**Answer:** B", "B"),
    ("Option B", "B"),
    ("I would choose option (a).", "A"),
    ("The correct option is B", "B"),
    ("The person is standing.", "B"),
    ("It looks as if she is sitting on a bench", "A"),
    ("The zebra is sitting, so (b)", "B"),
    ("A person is sitting. B", "B"),
    ("A dog is standing", "B"),
    ("The answer is black", None),
    ("The answer is a dog", None),
    ("facing the camera", None),
    ("Answer is both", None),
    ("Either (a) or (b)", None),
    ("A or B", None),
    ("The person is not sitting.", None),
    ("She isn't standing", None),
    ("sitting or standing", None),
    ("I cannot tell.", None),
    ("", None),
    ("...", None),
    ("A dog (b)", "B"),
    ("The answer is (a). Option B is wrong.", "A"),
    ("understanding", None),
    ("She is on a bench.\nB", "B"),
    ("B\n\nShe stands upright.", "B"),
    ("A\nB", None),
    ("I see vitamin A", None),
    ("First line\nThe answer is\n(b)", "B"),
    ("Neither", None),
]


@pytest.mark.parametrize(("answer", "letter"), ANSWERS)
def test_letters_are_read_and_never_guessed(answer: str, letter: str | None) -> None:
    """Among them the answers that lmms-eval's own task misreads (tasks/mmvp/utils.py lines 49-55): a letter without a boundary before it."""
    found = lmms_eval_utils.read_letter(answer, ["Sitting", "Standing"])
    assert found == letter


def test_options_inside_each_other_are_kept_apart() -> None:
    options = ["Open", "Wide open", "Closed"]
    assert lmms_eval_utils.read_letter("The door is wide open.", options) == "B"
    assert lmms_eval_utils.read_letter("The door is open.", options) == "A"
    assert lmms_eval_utils.read_letter("No", ["Yes", "No"]) == "B"
    assert lmms_eval_utils.read_letter("Yes, there is", ["Yes", "No"]) == "A"


# --- VLMEvalKit ----------------------------------------------------------------------------------------------------------------------


def load_vlmevalkit(path: Path) -> pd.DataFrame:
    """A dataset as VLMEvalKit loads it (open-compass/VLMEvalKit e8e78f05).

    vlmeval/dataset/__init__.py lines 412-422: columns A and B and image make it a CustomMCQDataset. smp/file.py lines 274-275: pandas
    read_csv with tabs. dataset/image_base.py lines 132-158: index to text and back to int, image cells of at most 64 characters are
    references to other rows.
    """
    data = pd.read_csv(path, sep="\t")
    assert {"index", "question", "A", "B", "answer", "image"} <= set(data.columns)
    data = data[~pd.isna(data["image"])]
    assert all(len(image) > 64 for image in data["image"])
    data["index"] = [int(str(index)) for index in data["index"]]
    return data


def vlmevalkit_prompt(line: Mapping[str, Any]) -> str:
    """dataset/image_mcq.py lines 208-249 (build_prompt): options are the capital-letter columns that are not empty."""
    options = {
        letter: line[letter] for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter in line and not pd.isna(line[letter])
    }
    lines = [
        f"Question: {line['question']}",
        "Options:",
        *(f"{letter}. {option}" for letter, option in options.items()),
    ]
    return "\n".join([*lines, "Please select the correct answer from the options above. \n"])


def test_vlmevalkit_reads_the_same_questions_and_images(made: Benchmark, tmp_path: Path) -> None:
    export_vlmevalkit(str(tmp_path), made, name="pairs_1")
    data = load_vlmevalkit(tmp_path / "pairs_1.tsv")
    assert data["index"].tolist() == list(range(1, 21))
    for line, question in zip(data.to_dict("records"), made.questions, strict=True):
        assert vlmevalkit_prompt(line).startswith(
            f"Question: {question.text}\nOptions:\nA. {question.options[0]}\nB. {question.options[1]}\n"
        )
        assert line["answer"] == "AB"[question.answer]
        assert line["pair_id"] == f"pair {question.pair_id}"
        assert base64.b64decode(line["image"]) == Path(question.image_uri).read_bytes()


def test_vlmevalkit_rows_pass_its_own_report_on_pairs(made: Benchmark, tmp_path: Path) -> None:
    """dataset/utils/multiple_choice.py lines 613-624 (report_acc_MMVP): rows 2i and 2i+1 ask the same, and both hits make a pair.
    Lines 77-100 (report_acc): Overall and each category. score_pairs.py agrees with the first."""
    export_vlmevalkit(str(tmp_path), made, name="pairs_1")
    data = load_vlmevalkit(tmp_path / "pairs_1.tsv").drop(columns="image")
    data["hit"] = [int(index % 3 != 0) for index in data["index"]]
    data["log"] = "Match Log: A. "
    questions, hits = data["question"].tolist(), data["hit"].tolist()
    assert all(questions[k] == questions[k + 1] for k in range(0, len(questions), 2))
    both = [hits[k] and hits[k + 1] for k in range(0, len(hits), 2)]
    found = score_pairs.pair_scores(data.sample(frac=1, random_state=0))
    assert found["pair_accuracy"] == pytest.approx(sum(both) / len(both))
    assert found["question_accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert set(data["category"]) == {"unlabelled"}


def test_the_script_counts_random_draws_as_wrong_and_broken_pairs_apart(made: Benchmark, tmp_path: Path) -> None:
    export_vlmevalkit(str(tmp_path), made, name="pairs_1")
    data = load_vlmevalkit(tmp_path / "pairs_1.tsv").drop(columns="image")
    data["hit"], data["log"] = 1, "Match Log: A. "
    data.loc[3, "log"] = "Match Log: Failed to predict, thus randomly generate one. . "
    data = data.drop(index=10)
    data.to_csv(tmp_path / "result.csv", index=False)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "score_pairs.py"), str(tmp_path / "result.csv")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(run.stdout) == pytest.approx(
        {
            "pair_accuracy": 8 / 9,
            "num_pairs": 9,
            "question_accuracy": 18 / 19,
            "num_questions": 19,
            "num_random_draws": 1,
            "num_broken_pairs": 1,
        }
    )
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    failed = subprocess.run(
        [sys.executable, str(tmp_path / "score_pairs.py"), str(tmp_path / "other.csv")], capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "no pair_id, num_items, hit, log" in failed.stderr


@pytest.mark.parametrize("option", ["None", "NA", "null", "n/a", "nan"])
def test_options_that_pandas_takes_for_empty_cells_are_refused(made: Benchmark, tmp_path: Path, option: str) -> None:
    """image_mcq.py line 225: an option that pandas reads as NaN would silently be left out of the prompt."""
    items = [replace(made.questions[0], options=("One", option)), *made.questions[1:]]
    with pytest.raises(DataError, match=r"an empty cell.*pair 'pair 1'"):
        export_vlmevalkit(str(tmp_path), replace(made, items=tuple(items)), name="p")
    assert not (tmp_path / "p.tsv").exists()


def test_numbers_that_pandas_would_respell_are_refused(made: Benchmark, tmp_path: Path) -> None:
    items = tuple(replace(question, options=("01", "02")) for question in made.questions)
    with pytest.raises(DataError, match="'01' as '1'"):
        export_vlmevalkit(str(tmp_path), replace(made, items=items), name="p")


@pytest.mark.parametrize("name", ["MMVP", "my_circular", "MMBench_mine", "MMMU", "../x", "a b", "", "x" * 65])
def test_names_that_vlmevalkit_treats_specially_are_refused(made: Benchmark, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        export_vlmevalkit(str(tmp_path), made, name=name)


def test_texts_with_tabs_quotes_and_line_ends_survive(made: Benchmark, tmp_path: Path) -> None:
    text = 'Is it "open",\tor\nnot\r?'
    items = (replace(made.questions[0], text=text), *made.questions[1:])
    export_vlmevalkit(str(tmp_path), replace(made, items=items), name="p")
    assert load_vlmevalkit(tmp_path / "p.tsv")["question"].tolist()[0] == text


# --- Hugging Face --------------------------------------------------------------------------------------------------------------------


def test_a_dataset_folder_of_questions(made: Benchmark, tmp_path: Path) -> None:
    items = tuple(
        replace(q, provenance={"license": "CC BY 4.0", "source": "mini"}, patterns=("Text",)) for q in made.questions
    )
    export_huggingface(str(tmp_path / "x"), replace(made, items=items), license_id="cc-by-4.0")
    docs = load_docs(str(tmp_path / "x" / "data" / "test-00000-of-00001.parquet"))
    assert [
        (d["pair_id"], d["item"], d["num_items"], d["question"], tuple(d["options"]), d["answer"]) for d in docs
    ] == [(q.pair_id, q.item, 2, q.text, q.options, "AB"[q.answer]) for q in made.questions]
    assert {(d["license"], d["source"], tuple(d["patterns"])) for d in docs} == {("CC BY 4.0", "mini", ("Text",))}
    text = (tmp_path / "x" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert front["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*.parquet"}]}
    ]
    assert "| Text | 20 |" in text
    assert "| CC BY 4.0 | 20 |" in text
    assert made.fingerprint in text


def test_a_dataset_folder_of_statements(tmp_path: Path) -> None:
    made = make_mmvp_vlm(tmp_path / "made", pairs_per_pattern=1)
    export_huggingface(str(tmp_path / "x"), made)
    docs = load_docs(str(tmp_path / "x" / "data" / "test-00000-of-00001.parquet"))
    assert [(d["statement"], tuple(d["patterns"])) for d in docs] == [(s.text, s.patterns) for s in made.statements]
    assert "| State and Condition | 2 |" in (tmp_path / "x" / "README.md").read_text()


def test_images_are_embedded_byte_for_byte_in_small_row_groups(tmp_path: Path) -> None:
    made = make_mmvp(tmp_path / "made", num_pairs=60)
    export_huggingface(str(tmp_path / "x"), made)
    path = tmp_path / "x" / "data" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [row["image"]["bytes"] for row in rows] == [Path(q.image_uri).read_bytes() for q in made.questions]
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [ROWS_PER_GROUP, 20]


def test_hostile_names_and_licenses_do_no_harm_on_a_card(made: Benchmark) -> None:
    hostile = "x\n---\nlicense: mit\n[click](javascript:alert(1)) <script>alert(1)</script> | `a` ![i](http://e/x.png) \u202etxt"
    items = tuple(replace(q, provenance={"license": hostile}, patterns=(hostile,)) for q in made.questions)
    text = card(replace(made, items=items, name=hostile, key=hostile), license_id=hostile)
    assert text.count("\n---\n") == 1
    front, body = text.split("\n---\n")
    assert yaml.safe_load(front.removeprefix("---\n"))["tags"] == ["mmvp", "visual-patterns", "image-pairs"]
    for markup in ("<script", "[click](", "![i]", "\u202e", "`a`"):
        assert markup not in body
    assert all(line.count("|") - line.count("\\|") in (0, 3) for line in body.splitlines())


# --- all forms -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in FORMS if form != "mmvp_vlm"])
@pytest.mark.parametrize("images", ["identical", "reencoded"])
def test_every_form_of_questions_writes_and_never_overwrites(
    made: Benchmark, tmp_path: Path, form: str, images: Any
) -> None:
    refuse_existing(made, str(tmp_path / "out"), form=form)
    export_benchmark(made, str(tmp_path / "out"), form=form, images=images)
    with pytest.raises(ConfigError, match="remove it or name another"):
        refuse_existing(made, str(tmp_path / "out"), form=form)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert before
    with pytest.raises(ConfigError, match="remove it or name another"):
        export_benchmark(made, str(tmp_path / "out"), form=form, images=images)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    if form in ("table", "mmvp") and images == "identical":
        assert open_benchmark(str(tmp_path / "out")).fingerprint == made.fingerprint


@pytest.mark.parametrize("form", ["mmvp", "lmms_eval", "vlmevalkit"])
def test_statements_do_not_become_questions(tmp_path: Path, form: str) -> None:
    made = make_mmvp_vlm(tmp_path / "made", pairs_per_pattern=1)
    with pytest.raises(ConfigError, match="expected a benchmark of questions"):
        export_benchmark(made, str(tmp_path / "out"), form=form)
    for known in ("table", "mmvp_vlm"):
        export_benchmark(made, str(tmp_path / known), form=known)
        assert open_benchmark(str(tmp_path / known)).num_pairs == 9


def test_unknown_forms_and_modes_list_the_known_ones(made: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table, mmvp, mmvp_vlm, huggingface, lmms_eval, vlmevalkit"):
        export_benchmark(made, str(tmp_path / "x"), form="csv")
    with pytest.raises(ConfigError, match="identical, reencoded"):
        export_benchmark(made, str(tmp_path / "x"), form="mmvp", images="small")  # type: ignore[arg-type]


def test_reencoded_images_carry_no_metadata_in_any_form(tmp_path: Path) -> None:
    secret = b"GPS of my house"
    exif = Image.Exif()
    exif[0x9286] = secret
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), (200, ord(name), 0)).save(tmp_path / f"{name}.jpg", exif=exif)
    items = [
        Question(
            pair_id="1", item=name, image_uri=str(tmp_path / f"{name}.jpg"), text="x?", options=("p", "q"), answer=k
        )
        for k, name in enumerate("ab")
    ]
    made = collect(items, name="n")
    for form in ("table", "mmvp", "huggingface", "lmms_eval"):
        export_benchmark(made, str(tmp_path / form), form=form, images="reencoded")
        assert not any(secret in path.read_bytes() for path in (tmp_path / form).rglob("*") if path.is_file())
        export_benchmark(made, str(tmp_path / f"{form}2"), form=form)
        assert any(secret in path.read_bytes() for path in (tmp_path / f"{form}2").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "plain"), [("My Pairs!", "my_pairs"), ("", "pairs"), ("../x", "x"), ("\u00c4", "pairs")]
)
def test_names_become_plain(name: str, plain: str) -> None:
    assert plain_name(name) == plain
