"""A study from its links to its last answer: nothing leaks, nobody goes back, and a crash at any point costs nothing."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict, replace

import pytest
from PIL import Image

from mmvp_ray.annotate.links import keep_served_url
from mmvp_ray.annotate.people import digest
from mmvp_ray.annotate.pictures import view_bytes
from mmvp_ray.annotate.studies import StudyAddConfig, StudyNewConfig, add_participants, add_to_study, new_study
from mmvp_ray.annotate.studying import (
    Finished,
    OutOfTurnError,
    Shown,
    agree,
    answer,
    csrf_of,
    current,
    next_images,
    participant_of,
)
from mmvp_ray.annotate.workspace import open_workspace
from mmvp_ray.benchmark.table import write_table
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.miniature.benchmark import make_mmvp, make_mmvp_vlm

NUM_PAIRS = 6


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_mmvp(tmp_path_factory.mktemp("benchmark"), num_pairs=NUM_PAIRS)


@pytest.fixture
def config(benchmark, tmp_path):
    return StudyNewConfig(
        workspace=str(tmp_path / "work"), name="first", benchmark=benchmark.url, participants=2, min_gap=3
    )


def tokens_of(lines):
    return re.findall(r"#([\w-]+)$", "\n".join(lines), re.MULTILINE)


def begin(config):
    """A study whose participants have agreed: (workspace, tokens)."""
    tokens = tokens_of(new_study(config))
    workspace = open_workspace(config.workspace)
    for token in tokens:
        agree(workspace, participant_of(workspace, token))
    return workspace, tokens


def place_in_benchmark(workspace, participant, place):
    row = workspace.row(
        "SELECT question_place FROM responses WHERE participant_id = ? AND place = ?", participant.participant_id, place
    )
    return row["question_place"]


def test_a_study_holds_the_benchmark_and_shows_each_link_once(config, benchmark):
    lines = new_study(config)
    tokens = tokens_of(lines)
    assert len(tokens) == len(set(tokens)) == 2
    assert all(f"http://127.0.0.1:8765/study#{token}" in line for token, line in zip(tokens, lines[-2:], strict=True))
    workspace = open_workspace(config.workspace)
    study = workspace.row("SELECT * FROM studies")
    assert (study["name"], study["fingerprint"], study["min_gap"]) == ("first", benchmark.fingerprint, 3)
    rows = workspace.rows("SELECT * FROM study_questions ORDER BY place")
    assert [(row["pair_id"], row["item"], row["question"], tuple(json.loads(row["options"])), row["answer"]) for row in rows] == [
        (one.pair_id, one.item, one.text, one.options, one.answer) for one in benchmark.questions
    ]  # fmt: skip
    for row, question in zip(rows, benchmark.questions, strict=True):
        assert row["image_id"] == benchmark.image_sha256[question.image_uri]
        assert view_bytes(workspace, row["image_id"])[:4] == b"RIFF"
        image = workspace.row("SELECT * FROM images WHERE image_id = ?", row["image_id"])
        assert image["uri"] == question.image_uri and image["uri"].endswith(image["member"])
    # Of the secret the hash alone, nowhere the secret itself.
    kept = [bytes(row["token_sha256"]) for row in workspace.rows("SELECT token_sha256 FROM participants")]
    assert sorted(kept) == sorted(digest(token) for token in tokens)
    workspace.close()
    everything = b"".join(path.read_bytes() for path in workspace.folder.glob("annotate.sqlite*"))
    assert not any(token.encode() in everything for token in tokens)


def test_more_participants_go_on_in_the_numbering(config):
    workspace, tokens = begin(config)
    more = add_participants(workspace, "FIRST", 2, "https://lab.org/annotate/")
    assert [line.split()[0] for line in more[-2:]] == ["P003", "P004"]
    assert more[-1].split()[1].startswith("https://lab.org/annotate/study#")
    assert len({*tokens, *tokens_of(more)}) == 4
    assert {row["seed"] for row in workspace.rows("SELECT seed FROM participants")} == {1, 2, 3, 4}
    adding = StudyAddConfig(workspace=config.workspace, name="first", participants=1)
    assert add_to_study(adding)[-1].startswith("P005  http://127.0.0.1:8765/study#")
    keep_served_url(workspace, "http://127.0.0.1:18765")
    assert add_to_study(adding)[-1].startswith("P006  http://127.0.0.1:18765/study#")
    with pytest.raises(ConfigError, match="--participants"):
        add_to_study(replace(adding, participants=0))
    with pytest.raises(ConfigError, match="expected a study among first, found 'second'"):
        add_participants(workspace, "second", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workspace": ""}, "--workspace"),
        ({"name": ""}, "--name"),
        ({"name": "a\nb"}, "printable"),
        ({"participants": 0}, "--participants"),
        ({"min_gap": -1}, "--min-gap"),
        ({"url": "lab.org"}, "--url"),
        ({"url": "https://lab.org/#x"}, "--url"),
        ({"intro": "x" * 5000}, "--intro"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        new_study(replace(config, **changes))
    assert not (tmp_path / "work").exists()


def test_what_participants_could_not_read_whole_is_refused(config, benchmark, tmp_path):
    def asked(number, **changes):
        url = str(tmp_path / str(number))
        first, *others = benchmark.questions
        write_table(url, [replace(first, **changes), *others], name="long")
        return replace(config, benchmark=url)

    options = tuple("a long option " * 40 + end for end in ("red", "blue"))
    for number, (changes, what) in enumerate(
        (
            ({"text": "x" * 2001}, "question"),
            ({"text": "x" + "\u202e" * 400}, "question"),
            ({"options": options, "answer": 0}, "option 1"),
        )
    ):
        first = benchmark.questions[0]
        with pytest.raises(
            ConfigError, match=f"the {what} of pair {first.pair_id}, item {first.item}; shorten it"
        ) as said:
            new_study(asked(number, **changes))
        limit, found = (int(text.replace(",", "")) for text in re.findall(r"[\d,]*\d", str(said.value))[:2])
        assert found > limit
    assert not (tmp_path / "work").exists()
    new_study(asked(3, text="x" * 1999 + "?"))


def test_statements_taken_names_and_broken_images(config, tmp_path):
    make_mmvp_vlm(tmp_path / "statements", pairs_per_pattern=1)
    with pytest.raises(ConfigError, match="benchmark of questions"):
        new_study(replace(config, benchmark=str(tmp_path / "statements")))
    new_study(config)
    with pytest.raises(ConfigError, match="there is a study 'FIRST' already"):
        new_study(replace(config, name="FIRST"))
    broken = make_mmvp(tmp_path / "broken", num_pairs=2)
    path = tmp_path / "broken" / "MMVP Images" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"3\.jpg"):
        new_study(replace(config, name="second", benchmark=broken.url))
    assert len(open_workspace(config.workspace).rows("SELECT 1 FROM studies")) == 1


def test_a_small_benchmark_says_which_gap_it_has_room_for(config):
    assert "room for 5 questions between two of one pair, not 10" in new_study(replace(config, min_gap=10))[1]


def test_a_whole_way(config, benchmark):
    workspace, (token, _) = begin(config)
    participant = participant_of(workspace, token)
    seen = []
    for place in range(2 * NUM_PAIRS):
        ahead = next_images(workspace, participant, 2)
        shown = current(workspace, participant)
        assert isinstance(shown, Shown) and (shown.place, shown.total) == (place, 2 * NUM_PAIRS)
        assert shown.image_id == ahead[0]
        number = place_in_benchmark(workspace, participant, place)
        question = benchmark.questions[number]
        assert (shown.question, shown.options) == (question.text, question.options)
        assert shown.image_id == benchmark.image_sha256[question.image_uri]
        seen.append(number)
        answer(workspace, participant, place, None if place == 4 else question.answer, 0.25)
        assert participant_of(workspace, token).num_answered == place + 1
    assert sorted(seen) == list(range(2 * NUM_PAIRS))
    pairs = [benchmark.questions[number].pair_id for number in seen]
    assert all(pairs[place] not in pairs[place + 1 : place + 4] for place in range(len(pairs)))
    assert current(workspace, participant) == Finished(total=2 * NUM_PAIRS)
    assert next_images(workspace, participant, 2) == ()
    assert participant_of(workspace, token).has_finished
    rows = workspace.rows("SELECT * FROM responses ORDER BY place")
    assert [row["choice"] for row in rows] == [
        -1 if place == 4 else benchmark.questions[number].answer for place, number in enumerate(seen)
    ]
    kinds = [row["kind"] for row in workspace.rows("SELECT kind FROM events ORDER BY event_id")]
    assert kinds.count("study_answered") == kinds.count("study_shown") == 2 * NUM_PAIRS
    assert kinds[-1] == "study_finished"


def test_what_is_shown_holds_nothing_of_the_key(config, tmp_path, benchmark):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    questions = []
    for number, question in enumerate(benchmark.questions):
        path = pictures / f"leaky-name-{number}.png"
        Image.open(question.image_uri).save(path)
        questions.append(
            replace(question, pair_id=f"leaky-pair-{question.pair_id}", image_uri=str(path), patterns=("Text",))
        )
    write_table(str(tmp_path / "table"), questions, name="leaky-benchmark")
    workspace, (token, _) = begin(replace(config, benchmark=str(tmp_path / "table")))
    shown = asdict(current(workspace, participant_of(workspace, token)))
    assert set(shown) == {
        "place", "total", "image_id", "width_px", "height_px", "is_unsafe", "question", "options",
    }  # fmt: skip
    assert "leaky" not in json.dumps(shown) and "Text" not in json.dumps(shown["options"])


def test_order_of_options_is_recorded_and_undone(config, benchmark):
    workspace, tokens = begin(replace(config, shuffle_options=True))
    orders = set()
    for token in tokens:
        participant = participant_of(workspace, token)
        for place in range(2 * NUM_PAIRS):
            shown = current(workspace, participant)
            question = benchmark.questions[place_in_benchmark(workspace, participant, place)]
            assert sorted(shown.options) == sorted(question.options)
            answer(workspace, participant, place, shown.options.index(question.options[question.answer]), 1.0)
            row = workspace.row(
                "SELECT * FROM responses WHERE participant_id = ? AND place = ?", participant.participant_id, place
            )
            order = json.loads(row["option_order"])
            orders.add(tuple(order))
            assert shown.options == tuple(question.options[index] for index in order)
            assert row["choice"] == question.answer
    assert len(orders) > 1


def test_a_crash_at_any_point(config, monkeypatch):
    """Every write is tried, fails before it is committed, and is done again by a server that starts anew."""
    workspace, (token, _) = begin(config)
    num_broken = 0

    def again():
        workspace.close()
        fresh = open_workspace(config.workspace)
        return fresh, participant_of(fresh, token)

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    def show(workspace, participant, place):
        current(workspace, participant)

    def say(workspace, participant, place):
        answer(workspace, participant, place, 1, 0.1)

    for place in range(2 * NUM_PAIRS):
        for step in (show, say):
            workspace, participant = again()
            before = workspace.rows("SELECT * FROM responses ORDER BY place")
            with monkeypatch.context() as patch:
                patch.setattr("mmvp_ray.annotate.studying.record", killed)
                with pytest.raises(Killed):
                    step(workspace, participant, place)
            num_broken += 1
            workspace, participant = again()
            assert workspace.rows("SELECT * FROM responses ORDER BY place") == before
            step(workspace, participant, place)
        workspace, participant = again()
        # Answered and acknowledged: there after the restart, and the same again changes nothing.
        answer(workspace, participant, place, 1, 0.9)
        assert participant_of(workspace, token).num_answered == place + 1
    assert isinstance(current(workspace, participant), Finished) and num_broken == 4 * NUM_PAIRS
    assert workspace.row("SELECT COUNT(*) AS num FROM events WHERE kind = 'study_answered'")["num"] == 2 * NUM_PAIRS


def test_the_same_question_comes_again_until_it_is_answered(config):
    workspace, (token, _) = begin(config)
    participant = participant_of(workspace, token)
    first = current(workspace, participant)
    at = workspace.row("SELECT shown_at FROM responses")["shown_at"]
    workspace.close()
    workspace = open_workspace(config.workspace)
    assert current(workspace, participant_of(workspace, token)) == first
    assert workspace.row("SELECT shown_at FROM responses")["shown_at"] == at


def test_no_other_turn_and_no_second_thoughts(config):
    workspace, (token, other) = begin(config)
    participant = participant_of(workspace, token)
    with pytest.raises(OutOfTurnError):
        answer(workspace, participant, 0, 0, 1.0)  # not shown yet
    current(workspace, participant)
    for place in (1, 2, -1, 99):
        with pytest.raises(OutOfTurnError):
            answer(workspace, participant, place, 0, 1.0)
    for choice in (2, -1, 99):
        with pytest.raises(ConfigError, match="choice from 0 to 1"):
            answer(workspace, participant, 0, choice, 1.0)
    answer(workspace, participant, 0, 0, 1.0)
    answer(workspace, participant, 0, 0, 1.0)
    for changed in (1, None):
        with pytest.raises(OutOfTurnError, match="cannot be changed"):
            answer(workspace, participant, 0, changed, 1.0)
    assert workspace.row("SELECT COUNT(*) AS num FROM events WHERE kind = 'study_answered'")["num"] == 1
    assert participant_of(workspace, other).num_answered == 0


def test_consent_comes_first(config):
    token, _ = tokens_of(new_study(config))
    workspace = open_workspace(config.workspace)
    participant = participant_of(workspace, token)
    assert not participant.has_agreed
    with pytest.raises(OutOfTurnError, match="agree"):
        current(workspace, participant)
    with pytest.raises(OutOfTurnError):
        answer(workspace, participant, 0, 0, 1.0)
    agree(workspace, participant)
    agree(workspace, participant)
    assert participant_of(workspace, token).has_agreed
    assert workspace.row("SELECT COUNT(*) AS num FROM events WHERE kind = 'study_agreed'")["num"] == 1
    assert participant_of(workspace, token + "x") is None and participant_of(workspace, "") is None


def test_forms_of_two_participants_have_two_tokens(config):
    workspace, (one, two) = begin(config)
    assert csrf_of(workspace, one) == csrf_of(workspace, one) != csrf_of(workspace, two)
    assert one not in csrf_of(workspace, one)


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        (None, None, None),
        (float("nan"), None, None),
        (-5.0, 0, 0),
        (0.5, 0.5, 0.5),
        (1e9, 1, 60),
        (float("inf"), 1, 60),
    ],
)
def test_times_are_held_within_what_the_server_saw(config, said, low, high):
    workspace, (token, _) = begin(config)
    participant = participant_of(workspace, token)
    current(workspace, participant)
    answer(workspace, participant, 0, 0, said)
    kept = workspace.row("SELECT seconds FROM responses")["seconds"]
    assert kept is None if low is None else low <= kept <= high


def test_two_participants_in_two_windows_each_at_once(config, benchmark):
    """Four threads, two of them on each link: every question is answered once, and nobody stumbles."""
    workspace, tokens = begin(config)
    errors = []

    def take_part(token):
        mine = open_workspace(config.workspace)
        try:
            while isinstance(shown := current(mine, participant_of(mine, token)), Shown):
                answer(mine, participant_of(mine, token), shown.place, 0, 0.01)
        except Exception as error:
            errors.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=take_part, args=(token,)) for token in tokens for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for token in tokens:
        participant = participant_of(workspace, token)
        assert participant.has_finished
        rows = workspace.rows(
            "SELECT question_place FROM responses WHERE participant_id = ? ORDER BY place", participant.participant_id
        )
        assert sorted(row["question_place"] for row in rows) == list(range(2 * NUM_PAIRS))
    one, two = (
        [row["question_place"] for row in workspace.rows("SELECT question_place FROM responses WHERE participant_id = ? ORDER BY place", participant_of(workspace, token).participant_id)]
        for token in tokens
    )  # fmt: skip
    assert one != two
