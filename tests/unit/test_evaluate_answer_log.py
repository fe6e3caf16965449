"""The log of answers and what is asked over it: nothing twice, nothing lost, nothing mixed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError, TransientError
from mmvp_ray.evaluate.answer_log import AnswerLog, read_identity
from mmvp_ray.evaluate.answer_parts import Record, content_digest, encoded, read_log
from mmvp_ray.evaluate.asking import AskingProgress, ask_all
from mmvp_ray.evaluate.responder import Ask, Reply
from tests.conftest import jpeg

IDENTITY = {"model": "m", "temperature": "0"}


def asks_of(count: int, **fields: Any) -> list[Ask]:
    return [Ask(**{"key": f"{number}/a", "prompt": f"Q{number}", **fields}) for number in range(count)]


def opened(folder: Path | str, **fields: Any) -> AnswerLog:
    return AnswerLog(str(folder), **{"name": "m", "identity": IDENTITY, **fields})


class Scripted:
    """Answers a prompt with its text reversed; fails where told to; notes what it was asked."""

    name = "scripted"

    def __init__(
        self, *, fail: set[str] | None = None, retry_helps: bool = False, stop_after: int | None = None
    ) -> None:
        self.fail = fail or set()
        self.retry_helps = retry_helps
        self.stop_after = stop_after
        self.asked: list[str] = []

    def identity(self) -> dict[str, str]:
        return IDENTITY

    def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
        for ask in asks:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise RuntimeError("killed")
            self.asked.append(ask.key)
            if ask.key in self.fail:
                yield Reply(key=ask.key, error="no luck", retry_helps=self.retry_helps, num_attempts=3)
            else:
                yield Reply(
                    key=ask.key, text=ask.prompt[::-1], finish="stop", num_prompt_tokens=2, raw={"model": "m-2026"}
                )


def test_what_was_added_is_found_again_and_read_again(tmp_path: Path) -> None:
    ask = Ask(key="1/a", prompt="Ü\ud800\n", image_uris=("x.jpg",), system="s", max_tokens=3)
    reply = Reply(key="1/a", text="\u2028 (a)\r\n", finish="stop", num_attempts=2, seconds=0.5, raw={"id": [1, None]})
    failed = Reply(key="2/a", error="lost", retry_helps=True)
    with opened(tmp_path / "log") as log:
        log.add(ask, ["ab"], reply)
        log.add(asks_of(3)[2], [], failed)
        assert log.find(ask, ["ab"]) == reply
        assert (log.num_answers, log.num_failures) == (1, 1)
    with opened(tmp_path / "log") as log:
        assert log.find(ask, ["ab"]) == reply
        assert (log.num_answers, log.num_failures) == (1, 1)
    records = list(read_log(str(tmp_path / "log")))
    assert [record.reply for record in records] == [reply, failed]
    assert records[0].ask == ask and records[0].image_ids == ("ab",)
    assert records[0].reply.raw == {"id": [1, None]}
    assert read_identity(str(tmp_path / "log")) == ("m", IDENTITY)


@pytest.mark.parametrize(
    "other",
    [{"key": "2"}, {"prompt": "Q?"}, {"system": "x"}, {"max_tokens": 9}],
)
def test_another_key_or_content_is_another_prompt(tmp_path: Path, other: dict[str, Any]) -> None:
    ask = Ask(key="1", prompt="Q")
    with opened(tmp_path) as log:
        log.add(ask, ["i"], Reply(key="1", text="a"))
        assert log.find(dataclasses.replace(ask, **other), ["i"]) is None
        assert log.find(ask, ["j"]) is None
        assert log.find(ask, ["i", "i"]) is None
        # Where an image lies is no part of it.
        assert log.find(dataclasses.replace(ask, image_uris=("elsewhere",)), ["i"]) is not None


@given(st.lists(st.text(), max_size=4), st.text(), st.text(), st.integers(1, 9))
def test_digests_are_of_the_whole_content(images: list[str], prompt: str, system: str, max_tokens: int) -> None:
    ask = Ask(key="k", prompt=prompt, system=system, max_tokens=max_tokens)
    digest = content_digest(ask, images)
    assert digest == content_digest(dataclasses.replace(ask, key="other"), images)
    assert digest != content_digest(ask, [*images, ""])
    assert digest != content_digest(dataclasses.replace(ask, prompt=prompt + " "), images)
    assert digest != content_digest(dataclasses.replace(ask, prompt=system, system=prompt), images) or prompt == system


def test_another_identity_is_refused_and_names_what_differs(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match=r"temperature '1' \(there '0'\)") as caught:
        opened(tmp_path, identity={**IDENTITY, "temperature": "1"})
    assert "model" not in str(caught.value).split("differs in")[1]
    with pytest.raises(ConfigError, match="seed"):
        opened(tmp_path, identity={**IDENTITY, "seed": "3"})


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="found other files"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["part-1.jsonl", "part-000000.jsonl.bak", "answers.csv"])
def test_unknown_files_are_refused(tmp_path: Path, name: str) -> None:
    opened(tmp_path).close()
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=name):
        opened(tmp_path)


@pytest.mark.parametrize("keep", ["0.0", "0.3", "0.9", "last line", "other line", "bad json"])
def test_torn_parts_are_refused_by_name(tmp_path: Path, keep: str) -> None:
    with opened(tmp_path) as log:
        for ask in asks_of(5):
            log.add(ask, [], Reply(key=ask.key, text="a"))
    part = tmp_path / "part-000000.jsonl"
    data = part.read_bytes()
    lines = data.splitlines(keepends=True)
    if keep == "last line":
        part.write_bytes(b"".join(lines[:-1]))
    elif keep == "other line":
        part.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    elif keep == "bad json":
        part.write_bytes(data.replace(b'"Q3"', b'"Q9"'))
    else:
        part.write_bytes(data[: int(len(data) * float(keep))])
    with pytest.raises(DataError, match=r"part-000000\.jsonl.*remove it"):
        opened(tmp_path)
    part.unlink()
    with opened(tmp_path) as log:
        assert log.num_answers == 0


def test_a_record_that_no_version_of_ours_wrote_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    whole = encoded([Record(ask=asks_of(1)[0], image_ids=(), reply=Reply(key="0/a", text="a"))], writer="w")
    line = json.loads(whole.splitlines()[0])
    del line["ask"]["prompt"]
    lines = json.dumps(line).encode() + b"\n"
    end = {"end": {"num_records": 1, "sha256": hashlib.sha256(lines).hexdigest(), "writer": "w"}}
    (tmp_path / "part-000000.jsonl").write_bytes(lines + json.dumps(end).encode())
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path)


def test_parts_are_written_by_count_and_by_time(tmp_path: Path) -> None:
    with opened(tmp_path, flush_count=2, flush_seconds=3600) as log:
        for ask in asks_of(5):
            log.add(ask, [], Reply(key=ask.key, text="a"))
        assert storage.list_names(str(tmp_path)) == ["manifest.json", "part-000000.jsonl", "part-000001.jsonl"]
    assert len(list(read_log(str(tmp_path)))) == 5
    with opened(tmp_path, flush_count=100, flush_seconds=0.05) as log:
        log.add(Ask(key="late", prompt="Q"), [], Reply(key="late", text="a"))
        until = time.monotonic() + 30
        while len(list(read_log(str(tmp_path)))) < 6 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(list(read_log(str(tmp_path)))) == 6


def test_a_second_writer_stops_with_one_line_and_overwrites_nothing(tmp_path: Path) -> None:
    one, two = opened(tmp_path, flush_seconds=3600), opened(tmp_path, flush_seconds=3600)
    # The same record from both: their parts differ all the same.
    for log in (one, two):
        log.add(asks_of(1)[0], [], Reply(key="0/a", text="a"))
    one.close()
    before = (tmp_path / "part-000000.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="only writer"):
        two.close()
    assert (tmp_path / "part-000000.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="only writer"):
        two.add(asks_of(2)[1], [], Reply(key="1/a", text="a"))


def test_what_cannot_be_written_in_time_is_raised_at_the_next_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path, flush_seconds=0.02)

    def broken(uri: str, data: bytes) -> bool:
        raise TransientError("the bucket is away")

    monkeypatch.setattr(storage, "create_bytes", broken)
    log.add(Ask(key="1", prompt="Q"), [], Reply(key="1", text="a"))
    log._timer.join(30)
    with pytest.raises(TransientError, match="bucket"):
        log.add(Ask(key="2", prompt="Q"), [], Reply(key="2", text="a"))
    with pytest.raises(TransientError, match="bucket"):
        log.close()


def test_every_prompt_has_one_reply_and_the_second_run_asks_nothing(tmp_path: Path) -> None:
    responder = Scripted()
    with opened(tmp_path, flush_count=7) as log:
        first = list(ask_all(asks_of(50), responder, log))
    assert [reply.text for reply in first] == [f"Q{number}"[::-1] for number in range(50)]
    assert responder.asked == [ask.key for ask in asks_of(50)]
    again = Scripted()
    with opened(tmp_path) as log:
        second = list(ask_all(asks_of(50), again, log))
    assert again.asked == []
    assert second == first


def test_a_responder_that_has_nothing_to_answer_is_not_called(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        list(ask_all(asks_of(3), Scripted(), log))

    class NoKey(Scripted):
        def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            raise ConfigError("expected an API key")

    with opened(tmp_path) as log:
        assert len(list(ask_all(asks_of(3), NoKey(), log))) == 3
        assert list(ask_all([], NoKey(), log)) == []


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9))
def test_a_run_that_ends_anywhere_goes_on_there(stop_after: int, count: int, flush_count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cut = Scripted(stop_after=stop_after)
        with opened(folder, flush_count=flush_count) as log, contextlib.suppress(RuntimeError):
            list(ask_all(asks_of(count), cut, log))
        rest = Scripted()
        with opened(folder) as log:
            replies = list(ask_all(asks_of(count), rest, log))
        assert cut.asked + rest.asked == [ask.key for ask in asks_of(count)]
        assert sorted(reply.key for reply in replies) == sorted(ask.key for ask in asks_of(count))


def test_a_changed_prompt_is_asked_again_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        list(ask_all(asks_of(9), Scripted(), log))
    changed = [dataclasses.replace(ask, prompt="other") if ask.key == "4/a" else ask for ask in asks_of(9)]
    responder = Scripted()
    with opened(tmp_path) as log:
        replies = {reply.key: reply.text for reply in ask_all(changed, responder, log)}
    assert responder.asked == ["4/a"]
    assert replies["4/a"] == "rehto" and replies["5/a"] == "5Q"


def test_a_changed_image_is_asked_again_and_a_moved_one_is_not(tmp_path: Path) -> None:
    picture = tmp_path / "1.jpg"
    picture.write_bytes(jpeg(1))
    asks = [Ask(key="1", prompt="Q", image_uris=(str(picture),))]
    with opened(tmp_path / "log") as log:
        list(ask_all(asks, Scripted(), log))
        (tmp_path / "moved.jpg").write_bytes(jpeg(1))
        responder = Scripted()
        moved = [dataclasses.replace(asks[0], image_uris=(str(tmp_path / "moved.jpg"),))]
        assert len(list(ask_all(moved, responder, log))) == 1 and responder.asked == []
        picture.write_bytes(jpeg(2))
        assert len(list(ask_all(asks, responder, log))) == 1 and responder.asked == ["1"]


def test_an_image_that_is_gone_is_a_matter_of_its_prompt(tmp_path: Path) -> None:
    asks = [*asks_of(3), Ask(key="gone", prompt="Q", image_uris=(str(tmp_path / "gone.jpg"),))]
    with opened(tmp_path / "log") as log:
        replies = list(ask_all(asks, Scripted(fail={"gone"}), log, max_failed_share=0.5))
    assert {reply.key for reply in replies if reply.error} == {"gone"}


def test_failures_are_kept_counted_and_asked_again(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def note(reply: Reply, progress: AskingProgress) -> None:
        seen.append((reply.key, progress.num_done))

    with opened(tmp_path) as log:
        replies = list(ask_all(asks_of(20), Scripted(fail={"7/a"}), log, on_reply=note))
        assert log.num_failures == 1
    assert [reply.key for reply in replies if reply.error] == ["7/a"]
    assert seen == [(f"{number}/a", number + 1) for number in range(20)]
    assert [record.reply.error for record in read_log(str(tmp_path)) if record.reply.error] == ["no luck"]
    responder = Scripted()
    with opened(tmp_path) as log:
        assert not [reply for reply in ask_all(asks_of(20), responder, log) if reply.error]
        assert log.num_failures == 0
    assert responder.asked == ["7/a"]


@pytest.mark.parametrize(("retry_helps", "kind"), [(True, TransientError), (False, ConfigError)])
def test_too_many_failures_end_the_run_with_the_first_cause(tmp_path: Path, retry_helps: bool, kind: type) -> None:
    responder = Scripted(fail={"1/a", "3/a"}, retry_helps=retry_helps)
    found: list[Reply] = []
    with opened(tmp_path) as log, pytest.raises(kind, match="found 2 of 20, the first because: no luck"):
        found.extend(ask_all(asks_of(20), responder, log))
    with opened(tmp_path) as log:
        assert len(list(ask_all(asks_of(20), responder, log, max_failed_share=0.1))) == 20


def test_a_run_in_which_nothing_works_ends_early(tmp_path: Path) -> None:
    responder = Scripted(fail={ask.key for ask in asks_of(1000)})
    with opened(tmp_path) as log, pytest.raises(ConfigError, match="no luck"):
        list(ask_all(asks_of(1000), responder, log))
    assert len(responder.asked) == 20
    with opened(tmp_path) as log:
        assert len(list(ask_all(asks_of(1000), responder, log, max_failed_share=1.0))) == 1000


def test_a_finished_run_with_failures_that_stay_ends_well_again(tmp_path: Path) -> None:
    responder = Scripted(fail={ask.key for ask in asks_of(600)[::25]})
    for _ in range(2):
        with opened(tmp_path) as log:
            replies = list(ask_all(asks_of(600), responder, log))
        assert sum(reply.error is not None for reply in replies) == 24


def test_a_responder_that_is_away_ends_the_run_and_prompts_that_always_fail_do_not(tmp_path: Path) -> None:
    asks = asks_of(1000)
    broken = {ask.key for ask in asks[100:148]}
    first = Scripted(fail=broken, retry_helps=True)
    with opened(tmp_path) as log, pytest.raises(TransientError, match=r"32 prompts one after the other.*: no luck"):
        list(ask_all(asks, first, log))
    assert len(first.asked) == 132
    for _ in range(2):
        with opened(tmp_path) as log:
            replies = list(ask_all(asks, Scripted(fail=broken, retry_helps=True), log))
        assert {reply.key for reply in replies if reply.error} == broken
    away = Scripted(fail={ask.key for ask in asks_of(1200)}, retry_helps=True)
    with opened(tmp_path) as log, pytest.raises(TransientError, match="32 prompts"):
        list(ask_all(asks_of(1200), away, log))
    assert len(away.asked) == 48 + 32


def test_a_prompt_given_twice_is_asked_once_and_two_of_one_key_are_refused(tmp_path: Path) -> None:
    responder = Scripted()
    with opened(tmp_path) as log:
        assert len(list(ask_all([*asks_of(3), *asks_of(3)], responder, log))) == 3
        assert len(responder.asked) == 3
        with pytest.raises(DataError, match="'1/a'"):
            list(ask_all([*asks_of(3), Ask(key="1/a", prompt="other")], responder, log))


@pytest.mark.parametrize(
    ("keys", "words"), [(["0/a", "0/a"], "one more for '0/a'"), (["0/a"], "none for 1"), (["x"], "'x'")]
)
def test_a_responder_that_loses_or_invents_replies_is_found_out(tmp_path: Path, keys: list[str], words: str) -> None:
    class Wrong(Scripted):
        def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            list(asks)
            for key in keys:
                yield Reply(key=key, text="a")

    with opened(tmp_path) as log, pytest.raises(DataError, match=words):
        list(ask_all(asks_of(2), Wrong(), log))


def test_progress_counts_kept_new_failed_and_cut(tmp_path: Path) -> None:
    class Cut(Scripted):
        def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            for reply in super().answer(asks):
                yield dataclasses.replace(reply, finish="length") if reply.text else reply

    last: list[dict[str, Any]] = []

    def note(reply: Reply, progress: AskingProgress) -> None:
        last.append(dataclasses.asdict(progress))

    with opened(tmp_path) as log:
        list(ask_all(asks_of(4), Scripted(), log))
    with opened(tmp_path) as log:
        list(ask_all(asks_of(10), Cut(fail={"9/a"}), log, on_reply=note, max_failed_share=0.2))
    assert last[-1] == {
        "num_kept": 4,
        "num_answered": 5,
        "num_failed": 1,
        "num_cut": 5,
        "num_empty": 0,
        "num_attempts": 8,
        "num_prompt_tokens": 10,
        "num_answer_tokens": 0,
        "first_error": "no luck",
        "first_error_passes": False,
    }


@pytest.mark.parametrize("again", [False, True])
def test_answers_that_are_cut_or_empty_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, again: bool) -> None:
    class Short(Scripted):
        def answer(self, asks: Iterable[Ask]) -> Iterator[Reply]:
            for reply in super().answer(asks):
                number = int(reply.key.split("/")[0])
                text, finish = ("", "length") if number == 1 else ("The", "length") if number == 2 else ("Yes", "stop")
                yield dataclasses.replace(reply, text=text, finish=finish)

    for _ in range(1 + again):
        caplog.clear()
        with opened(tmp_path) as log:
            list(ask_all(asks_of(5), Short(), log))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("2 of 5 answers of scripted ended at the limit of tokens, 1 are empty")


def test_prompts_are_drawn_lazily(tmp_path: Path) -> None:
    drawn = 0

    def source() -> Iterator[Ask]:
        nonlocal drawn
        for ask in asks_of(1000):
            drawn += 1
            yield ask

    with opened(tmp_path) as log:
        replies = ask_all(source(), Scripted(), log)
        for number in range(100):
            next(replies)
            assert drawn <= number + 70
        replies.close()  # type: ignore[attr-defined]


def test_many_threads_may_add(tmp_path: Path) -> None:
    with opened(tmp_path, flush_count=5) as log:

        def work(first: int) -> None:
            for number in range(first, 200, 4):
                log.add(Ask(key=str(number), prompt="Q"), [], Reply(key=str(number), text="a"))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(int(record.ask.key) for record in read_log(str(tmp_path))) == list(range(200))
