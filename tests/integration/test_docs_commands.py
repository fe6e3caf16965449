"""Every command of the pages is run, small and with stand-ins by the names that the pages use; those that cannot be are in a table with the reason."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmvp_ray import storage
from tests.conftest import free_port, jpeg
from tests.integration import docs_commands as commands
from tests.integration.docs_place import (
    BUCKET,
    REPOSITORY,
    Place,
    answer,
    make_place,
    run_job,
    write_imagenet,
    write_laion_metadata,
    write_lines,
    write_questions,
)
from tests.scripted_server import ScriptedServer
from tests.unit.test_docs import TEXTS, Line, job_lines, module_lines

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

IN_PLACE = [commands.INGEST, commands.MINE, commands.PEOPLE_BEFORE, commands.SERVE, commands.PEOPLE_AFTER]
IN_PLACE += [commands.STUDIES, commands.EVALUATE, commands.PROBE, commands.TRAIN]
RUN = [command for chapter in IN_PLACE for command in chapter]


def block_commands() -> set[str]:
    """Commands of code blocks: what a reader copies. Benchmarks have their own rule below."""
    lines = [line for page, text in TEXTS.items() for line in (*job_lines(page, text), *module_lines(page, text))]
    return {" ".join(line.words()) for line in lines if not line.is_span and "benchmarks" not in line.text.split()[0]}


def test_every_command_is_run_or_has_a_reason() -> None:
    known = [*RUN, *commands.ELSEWHERE]
    assert len(known) == len(set(known)), "a command stands in one table"
    found = block_commands()
    assert not found - set(known), "run these in tests/integration/docs_commands.py, or say there why not"
    assert not set(known) - found, "no page has these any more"
    assert len(RUN) > 5 * len(commands.ELSEWHERE)


@pytest.mark.parametrize("test", sorted({test for test, _ in commands.ELSEWHERE.values()}))
def test_the_tests_that_are_named_exist(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"\ndef {name}(" in (REPOSITORY / path).read_text()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, s3_bucket: str, ray_session: None, one_thread: None
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(answer) as server:
        patch.chdir(folder)
        patch.setenv("OPENAI_API_KEY", "none")
        yield make_place(folder, server)


@pytest.fixture(scope="module")
def ingested(place: Place) -> Place:
    write_imagenet(place.folder)
    write_laion_metadata()
    place.run_all(commands.INGEST)
    return place


@pytest.fixture(scope="module")
def mined(ingested: Place) -> Place:
    import torch

    place = ingested
    (source,) = re.findall(r"```python\n# my_encoders\.py\n(.*?)```", TEXTS["encoders.md"], flags=re.DOTALL)
    (place.folder / "my_encoders.py").write_text(source)
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(16, 192)}, place.folder / "patches.safetensors")
    torch.save({"weight": torch.ones(1, 24), "bias": torch.ones(1)}, place.folder / "sa_0_4_vit_l_14_linear.pth")
    (place.folder / "runs").mkdir()
    (place.folder / "runs/laion").symlink_to(place.folder / "runs/photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place.folder))
        place.run_all(commands.MINE)
    return place


def test_ingesting(ingested: Place) -> None:
    assert len(storage.list_names(f"s3://{BUCKET}/imagenet/shards")) == 2
    assert storage.list_names(f"s3://{BUCKET}/imagenet-val/shards") == ["val-000000.tar"]


def test_mining(mined: Place) -> None:
    for run in ("miniature", "photos", "mine"):
        assert (mined.folder / "runs" / run / "report.html").is_file()
    assert storage.exists(f"s3://{BUCKET}/runs/imagenet/report.html")


@pytest.fixture(scope="module")
def judged(mined: Place) -> Place:
    """People annotate and verify eight pairs, write and approve sentences, and answer both studies."""
    from mmvp_ray.annotate import statements
    from mmvp_ray.annotate.people import User, add_user
    from mmvp_ray.annotate.studying import Shown, agree, current, participant_of
    from mmvp_ray.annotate.studying import answer as answer_study
    from mmvp_ray.annotate.workspace import open_workspace
    from tests.unit.annotate_workspace import make_verified

    place = mined
    place.run_all(commands.PEOPLE_BEFORE)
    workspace = open_workspace("work")
    users = []
    for name, role in (("Ann", "annotator"), ("Vera", "verifier"), ("Rey", "reviewer")):
        add_user(workspace, name, role)
        users.append(User(user_id=2 + len(users), name=name, role=role, csrf=""))
    ann, vera, rey = users
    pair_ids = [row["pair_id"] for row in workspace.rows("SELECT pair_id FROM pairs ORDER BY pair_id LIMIT 9")]
    make_verified(workspace, pair_ids, author=ann, verifier=vera)
    for pair_id in pair_ids:
        statements.write(workspace, ann, pair_id, f"Dog {pair_id} is facing left.", f"Dog {pair_id} is facing right.")
        statements.review(workspace, rey, pair_id, approve=True)
    place.run_all(commands.PEOPLE_AFTER)
    for command in commands.PEOPLE_AFTER:
        for token in re.findall(r"#(\S+)", place.said[command])[:2] if "study new" in command else ():
            agree(workspace, participant_of(workspace, token))
            participant = participant_of(workspace, token)
            while isinstance(shown := current(workspace, participant), Shown):
                answer_study(workspace, participant, shown.place, 0, 1.0)
    workspace.close()
    place.run_all(commands.STUDIES)
    return place


def test_people(judged: Place) -> None:
    assert (judged.folder / "my_mmvp/Questions.csv").is_file()
    assert (judged.folder / "runs/study/responses.csv").is_file()


@pytest.mark.parametrize("command", commands.SERVE)
def test_the_app_is_served_until_it_is_stopped(judged: Place, command: str) -> None:
    words = [
        sys.executable,
        str(REPOSITORY / "jobs" / command.split()[0]),
        *command.split()[1:],
        "--port",
        str(free_port()),
    ]
    process = subprocess.Popen(words, cwd=judged.folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert "http" in process.stdout.readline()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_evaluating(judged: Place) -> None:
    from tests.integration.local_small_models import save_instructblip, save_llava
    from tests.integration.mof_checkpoints import save_mof

    place = judged
    save_llava(place.folder / "models/llava-1.5-7b-hf")
    save_instructblip(place.folder / "models/instructblip")
    save_mof(place.folder / "models/mof")
    models = place.folder / "models/mof"
    for path in (path for path in models.rglob("*") if path.is_file()):
        storage.write_bytes(f"s3://{BUCKET}/runs/finetune/model/{path.relative_to(models)}", path.read_bytes())
    for uri in storage.list_names(f"s3://{BUCKET}/imagenet-val/shards"):
        data = storage.read_bytes(f"s3://{BUCKET}/imagenet-val/shards/{uri}")
        storage.write_bytes(f"s3://{BUCKET}/imagenet-val/{uri}", data)
    write_questions(place.folder)
    place.run_all(commands.EVALUATE)
    for name in ("report", "figure4", "figure6"):
        assert (place.folder / "runs" / name / "report.html").is_file()


def test_probing(place: Place) -> None:
    item = {"sentence": "a cup facing left", "context": "a photo", "words": [{"word": "left", "swapped": "right"}]}
    items = [item | {"image": f"photos/{number}.jpg"} for number in range(3)]
    write_lines(place.folder / "items.jsonl", items)
    for number in range(3):
        storage.write_bytes(f"s3://{BUCKET}/coco50/photos/{number}.jpg", jpeg(number))
    storage.write_bytes(f"s3://{BUCKET}/coco50/items.jsonl", (place.folder / "items.jsonl").read_bytes())
    place.run_all(commands.PROBE)
    report = json.loads((place.folder / "runs/probe-study/report.json").read_text())
    assert "miniature:clip" in json.dumps(report)
    assert sorted((place.folder / "runs/probe-study/rows").glob("*.parquet"))


def test_preparing_to_train(place: Place) -> None:
    from tests.conftest import write_tar

    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red cat ."}]
    records = [{"id": str(number), "image": f"{number}.jpg", "conversations": turns} for number in range(4)]
    for command in commands.TRAIN:
        for source in re.findall(r"--source (\S+)", command):
            (place.folder / source).write_text(json.dumps(records))
    for name in ("train2017", "gqa"):
        write_tar(place.folder / f"{name}.tar", [(f"{name}/{number}.jpg", jpeg(number)) for number in range(3)])
        storage.write_bytes(f"s3://{BUCKET}/{name}.tar", (place.folder / f"{name}.tar").read_bytes())
    place.run_all(commands.TRAIN)
    assert "6 images" in place.said[next(command for command in commands.TRAIN if "index" in command)]


def spans() -> list[str]:
    """What sentences name: a job, a command of it, or a benchmark, however much of its flags they show."""
    lines = [line for page, text in TEXTS.items() for line in (*job_lines(page, text), *module_lines(page, text))]
    found = {start_of(line) for line in lines if line.is_span or "benchmarks" in line.text.split()[0]}
    return sorted(found)


def start_of(line: Line) -> str:
    words = line.words()
    end = next((at for at, word in enumerate(words) if at and not re.fullmatch(r"[a-z-]+(?<!-)", word)), len(words))
    return " ".join(word for word in words[:end] if not word.startswith("--"))


@pytest.mark.parametrize("named", spans())
def test_what_sentences_name_explains_itself(named: str) -> None:
    name, *words = named.split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        if name.endswith(".py"):
            run_job(name.removesuffix(".py"), [*words, "--help"])
        else:
            explain_module(name, said)
    assert len(said.getvalue()) > 50


def explain_module(name: str, said: io.StringIO) -> None:
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    if "argparse" not in Path(str(module.__file__)).read_text():
        said.write(module.__doc__ or "")
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, "--help"])
        module.main()
