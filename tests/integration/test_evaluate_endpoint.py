"""The endpoint against a real server on loopback that misbehaves in every way: answers are answers, failures failures, nothing more."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import os
import pickle
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, TransientError
from mmvp_ray.evaluate import asked_prompts
from mmvp_ray.evaluate.answer_log import AnswerLog
from mmvp_ray.evaluate.answer_parts import read_log
from mmvp_ray.evaluate.asking import ask_all
from mmvp_ray.evaluate.endpoint import EndpointResponder
from mmvp_ray.evaluate.endpoint_config import EndpointConfig
from mmvp_ray.evaluate.responder import Ask, Reply
from tests.conftest import free_port, jpeg
from tests.scripted_server import Act, Asked, ScriptedServer

pytestmark = [pytest.mark.integration]


def responder(server: ScriptedServer, **fields: Any) -> EndpointResponder:
    defaults: dict[str, Any] = {
        "preset": "vllm",
        "model": "scripted",
        "base_url": server.base_url,
        "concurrency": 8,
        "backoff_seconds": 0.01,
        # On a busy machine a right answer can take seconds, and would be asked for once more.
        "timeout_seconds": 60.0,
        "max_seconds": 120.0,
    }
    return EndpointResponder(EndpointConfig(**{**defaults, **fields}))


def asks_of(count: int, **fields: Any) -> list[Ask]:
    return [Ask(key=f"k{number}", prompt=f"Q{number}", **fields) for number in range(count)]


def by_key(replies: Iterator[Reply]) -> dict[str, Reply]:
    found = list(replies)
    assert len({reply.key for reply in found}) == len(found)
    return {reply.key: reply for reply in found}


def wait_until(is_so: Callable[[], bool]) -> None:
    """Until it is so, or so long that it never will be: what is asserted afterwards says which."""
    until = time.monotonic() + 60
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)


def test_every_prompt_gets_its_own_answer_and_no_more_are_in_flight_than_allowed() -> None:
    with ScriptedServer(lambda asked: f"answer to {asked.prompt}", delay_seconds=0.2) as server:
        replies = by_key(responder(server).answer(asks_of(100, system="Be brief.", max_tokens=7)))
        assert {key: reply.text for key, reply in replies.items()} == {f"k{n}": f"answer to Q{n}" for n in range(100)}
        assert server.counts == Counter({f"Q{n}": 1 for n in range(100)})
        assert server.most_open == 8
        assert {asked.system for asked in server.requests} == {"Be brief."}
        assert {asked.body["max_tokens"] for asked in server.requests} == {7}
        assert {asked.body["temperature"] for asked in server.requests} == {0}
    one = replies["k3"]
    assert (one.finish, one.num_attempts, one.num_prompt_tokens, one.num_answer_tokens) == ("stop", 1, 1, 3)
    assert one.seconds >= 0.2 and one.raw is not None and one.raw["model"] == "scripted"


def test_images_arrive_as_they_are_in_order(tmp_path: Path, s3_bucket: str) -> None:
    uris = [str(tmp_path / "a.jpg"), f"{s3_bucket}/pictures/b.png"]
    png = io.BytesIO()
    Image.new("RGB", (9, 7), (1, 2, 3)).save(png, "PNG")
    storage.write_bytes(uris[0], jpeg(1))
    storage.write_bytes(uris[1], png.getvalue())
    with ScriptedServer() as server:
        by_key(responder(server).answer([Ask(key="1", prompt="Q", image_uris=tuple(uris))]))
        assert server.requests[0].images == (jpeg(1), png.getvalue())


PASSING = {
    "429": Act(status=429, text="slow down", headers={"Retry-After": "0"}),
    "429 in ms": Act(status=429, headers={"retry-after-ms": "20"}),
    "408": Act(status=408),
    "409": Act(status=409),
    "500": Act(status=500, text="oops"),
    "503 of a proxy": Act(status=503, raw=b"<html>busy</html>", content_type="text/html"),
    "cut off": Act(text="(b) " * 500, keep_bytes=300),
    "cut off before the body": Act(text="(b)", keep_bytes=0),
    "dropped": Act(drop=True),
    "no json": Act(raw=b'{"choices": [{"message": {"content": "(b'),
    "empty": Act(raw=b""),
    "html": Act(raw=b"<html>please log in</html>", content_type="text/html"),
    "no choices": Act(raw=b'{"choices": []}'),
    "an error of status 200": Act(raw=b'{"error": {"message": "upstream", "code": 502}}'),
    "too long": Act(text="(b) " * 20_000),
}


SLOW = {
    "silent": Act(text="(b)", delay_seconds=30.0),
    "drip": Act(text="(b)", drip_seconds=0.1),
}
"""Of these each attempt is waited for in vain: they are asked for beside each other."""
TIMEOUT_SECONDS = 3.0


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_asked_again_until_there_is_an_answer(kind: str) -> None:
    def script(asked: Asked) -> str | Act:
        return PASSING[kind] if asked.number < 3 else "(a)"

    with ScriptedServer(script) as server:
        reply = by_key(responder(server, max_answer_bytes=20_000).answer(asks_of(1)))["k0"]
        assert (reply.text, reply.error) == ("(a)", None)
        assert reply.num_attempts == server.counts["Q0"] == 3


def test_what_comes_too_slowly_is_asked_again_until_there_is_an_answer() -> None:
    def script(asked: Asked) -> str | Act:
        return SLOW[asked.prompt] if asked.number < 3 else "(a)"

    with ScriptedServer(script) as server:
        asks = [Ask(key=kind, prompt=kind) for kind in SLOW]
        replies = by_key(responder(server, timeout_seconds=TIMEOUT_SECONDS).answer(asks))
        assert replies.keys() == SLOW.keys()
        for kind, reply in replies.items():
            assert (reply.text, reply.error) == ("(a)", None)
            # A right answer that came too late is asked for once more, and a request that came too late was not heard.
            assert reply.num_attempts >= server.counts[kind] >= 3


@pytest.mark.parametrize("kind", ["429", "500", "cut off", "dropped", "no json", "html"])
def test_what_does_not_pass_is_a_failure_and_never_an_answer(kind: str) -> None:
    with ScriptedServer(lambda asked: PASSING[kind] if asked.prompt == "Q0" else "(a)") as server:
        replies = by_key(responder(server, num_retries=2).answer(asks_of(3)))
        assert server.counts["Q0"] == 3
    failed = replies.pop("k0")
    assert failed.text is None and failed.num_attempts == 3 and failed.retry_helps
    assert "after 3 attempts" in str(failed.error) and "\n" not in str(failed.error)
    assert [reply.text for reply in replies.values()] == ["(a)", "(a)"]


def test_what_comes_too_slowly_for_ever_is_a_failure_and_never_an_answer() -> None:
    with ScriptedServer(lambda asked: SLOW.get(asked.prompt, "(a)")) as server:
        asks = [*asks_of(2), *(Ask(key=kind, prompt=kind) for kind in SLOW)]
        replies = by_key(responder(server, num_retries=2, timeout_seconds=TIMEOUT_SECONDS).answer(asks))
        for kind in SLOW:
            failed = replies.pop(kind)
            # A request that came too late was not heard.
            assert server.counts[kind] in (1, 2, 3)
            assert failed.text is None and failed.num_attempts == 3 and failed.retry_helps
            assert "after 3 attempts" in str(failed.error) and "\n" not in str(failed.error)
    assert [reply.text for reply in replies.values()] == ["(a)", "(a)"]


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_a_prompt_that_is_refused_is_asked_once_and_the_others_go_on(status: int) -> None:
    refused = Act(status=status, text="this image is too\nlarge")
    with ScriptedServer(lambda asked: refused if asked.prompt == "Q1" else "(a)") as server:
        replies = by_key(responder(server).answer(asks_of(4)))
        assert server.counts["Q1"] == 1
    assert sum(reply.text == "(a)" for reply in replies.values()) == 3
    error = replies["k1"].error
    assert error is not None and f"status {status}" in error and "'k1'" in error and "this image is too large" in error
    assert not replies["k1"].retry_helps


def test_a_prompt_that_a_moderator_flagged_is_its_own_matter() -> None:
    # The body of OpenRouter's documentation.
    error = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "Q0"}}
    refused = Act(status=403, raw=json.dumps({"error": error}).encode())
    with ScriptedServer(lambda asked: refused if asked.prompt == "Q0" else "(a)") as server:
        replies = by_key(responder(server, concurrency=1).answer(asks_of(3)))
        assert server.counts["Q0"] == 1
    assert "status 403 (flagged)" in str(replies["k0"].error) and not replies["k0"].retry_helps
    assert [replies[f"k{number}"].text for number in (1, 2)] == ["(a)", "(a)"]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Act(status=402, text="no credit left"), "credit.*no credit left"),
        (Act(status=401, text="wrong key"), "VLLM_API_KEY.*status 401.*wrong key"),
        (Act(status=403, text="not you"), "status 403.*not you"),
        (Act(status=404, text="no such model"), "model 'scripted'.*status 404.*no such model"),
        (Act(status=405), "status 405"),
        (Act(status=429, text="no credit", code="insufficient_quota"), "credit.*no credit"),
        (Act(status=400, text="API key not valid. Please pass a valid API key."), "status 400"),
        (Act(status=307, raw=b"", headers={"Location": "http://example.com/v1"}), "points to http://example.com/v1"),
    ],
)
def test_what_concerns_all_prompts_is_raised_at_once_in_one_line(act: Act, words: str) -> None:
    with ScriptedServer(lambda asked: act) as server:
        with pytest.raises(ConfigError, match=words) as caught:
            list(responder(server, concurrency=2).answer(asks_of(200)))
        assert "\n" not in str(caught.value)
        assert server.counts.total() <= 8


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret-0123456789")
    with ScriptedServer() as other:
        moved = Act(status=308, raw=b"", headers={"Location": other.base_url + "/chat/completions"})
        with ScriptedServer(lambda asked: moved) as server:
            with pytest.raises(ConfigError, match="status 308"):
                list(responder(server).answer(asks_of(1)))
            assert server.requests[0].headers["authorization"] == "Bearer sk-secret-0123456789"
        assert other.counts.total() == 0


def test_answers_that_came_before_the_end_are_given_out() -> None:
    def script(asked: Asked) -> str | Act:
        return Act(status=401) if asked.prompt == "Q20" else "(a)"

    with ScriptedServer(script) as server:
        found: list[str] = []
        with pytest.raises(ConfigError):
            found.extend(reply.key for reply in responder(server, concurrency=1).answer(asks_of(50)))
    assert found == [f"k{number}" for number in range(20)]


def test_an_answer_that_waits_behind_the_end_is_given_out_too() -> None:
    all_drawn = threading.Event()
    heard: list[Asked] = []

    def source() -> Iterator[Ask]:
        yield from asks_of(5)
        all_drawn.set()
        yield Ask(key="k5", prompt="Q5")

    def script(asked: Asked) -> str | Act:
        # Nothing is answered before all are drawn, so that the order of the answers is this one.
        if not all_drawn.is_set():
            return Act(status=503)
        heard.append(asked)
        # Of three at a time two stay on their way: each one after the third shows that the answer before it is there.
        says = {1: Act(text="first"), 4: Act(status=401), 5: Act(text="behind the end")}
        return says.get(len(heard), Act(delay_seconds=60.0))

    with ScriptedServer(script) as server:
        replies = responder(server, concurrency=3, num_retries=30).answer(source())
        assert next(replies).text == "first"
        wait_until(lambda: len(heard) == 6)
        assert next(replies).text == "behind the end"
        with pytest.raises(ConfigError):
            next(replies)


def test_the_key_is_sent_and_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-secret-0123456789"
    monkeypatch.setenv("VLLM_API_KEY", key)
    caplog.set_level(0)

    def script(asked: Asked) -> str | Act:
        # A server that repeats what it was sent, as debugging proxies do.
        text = f"you sent {asked.headers['authorization']}"
        return Act(status=400, text=text) if asked.prompt == "Q1" else text

    with ScriptedServer(script, api_key=key) as server:
        asked = responder(server)
        with AnswerLog(str(tmp_path), name=asked.name, identity=asked.identity()) as log:
            replies = by_key(ask_all(asks_of(3), asked, log, max_failed_share=1))
    assert replies["k0"].text == "you sent Bearer ***" and "***" in str(replies["k1"].error)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert key.encode() not in written and b"uthorization" not in written
    assert key not in caplog.text and key not in "".join(capfd.readouterr())
    assert key not in repr(vars(asked)) and key not in repr(asked.identity())


def test_without_the_right_key_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    with ScriptedServer(api_key="right") as server, pytest.raises(ConfigError, match="status 401") as caught:
        list(responder(server).answer(asks_of(5)))
    assert "wrong" not in str(caught.value)


def test_a_model_that_does_not_exist_is_named() -> None:
    with ScriptedServer(models=["llava"]) as server:
        with pytest.raises(ConfigError, match=r"model 'lava'.*does not exist"):
            list(responder(server, model="lava").answer(asks_of(2)))
        assert by_key(responder(server, model="llava").answer(asks_of(1)))["k0"].text == "(a)"


def test_an_endpoint_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    config = EndpointConfig(
        preset="vllm", model="m", base_url=f"http://127.0.0.1:{free_port()}/v1", num_retries=1, backoff_seconds=0.01
    )
    drawn = 0

    def source() -> Iterator[Ask]:
        nonlocal drawn
        for ask in asks_of(10_000):
            drawn += 1
            yield ask

    asked = EndpointResponder(config)
    with (
        AnswerLog(str(tmp_path), name=asked.name, identity=asked.identity()) as log,
        pytest.raises(TransientError, match=r"found 20 of 20.*the connection to .* failed"),
    ):
        list(ask_all(source(), asked, log))
    assert drawn < 200
    replies = by_key(EndpointResponder(config).answer(asks_of(3)))
    assert all(reply.retry_helps and reply.text is None for reply in replies.values())


def test_a_prompt_that_never_works_does_not_end_a_run_that_asks_one_at_a_time(tmp_path: Path) -> None:
    with ScriptedServer(lambda asked: Act(status=500) if asked.prompt == "Q3" else "(a)") as server:
        asked = responder(server, concurrency=1, num_retries=1)
        with AnswerLog(str(tmp_path), name=asked.name, identity=asked.identity()) as log:
            replies = by_key(ask_all(asks_of(40), asked, log))
    assert [key for key, reply in replies.items() if reply.error] == ["k3"]


def test_the_time_for_one_prompt_is_limited() -> None:
    with ScriptedServer(lambda asked: Act(status=500)) as server:
        reply = by_key(responder(server, max_seconds=5.0, num_retries=10_000).answer(asks_of(1)))["k0"]
        assert reply.error is not None and reply.seconds <= 60 and reply.num_attempts > 1


def test_a_pause_that_is_longer_than_a_prompt_may_take_ends_the_run_and_says_so() -> None:
    arrival = itertools.count(1)

    def script(asked: Asked) -> str | Act:
        # Of two at a time the fourth to arrive is asked when two are answered, whichever prompt it is.
        pause = Act(status=429, text="daily quota", headers={"Retry-After": "86400"})
        return pause if next(arrival) == 4 else "(a)"

    with ScriptedServer(script) as server:
        started = time.monotonic()
        found: list[str | None] = []
        with pytest.raises(TransientError, match=r"86,400 s \(daily quota\)"):
            found.extend(reply.text for reply in responder(server, concurrency=2, max_seconds=60.0).answer(asks_of(20)))
    assert found.count("(a)") >= 2 and None not in found and time.monotonic() - started < 55


def test_patience_that_is_asked_for_is_had_by_all() -> None:
    times: list[float] = []

    def script(asked: Asked) -> str | Act:
        times.append(time.monotonic())
        # The first to arrive, whichever prompt it is: all others come after it.
        return Act(status=429, headers={"Retry-After": "1"}) if len(times) == 1 else "(a)"

    with ScriptedServer(script) as server:
        assert len(by_key(responder(server, concurrency=2).answer(asks_of(12)))) == 12
    # Beside the first, one was on its way; a few may begin before the word arrives.
    assert sum(at - times[0] < 0.95 for at in times) <= 6


def test_requests_are_spread_over_the_minute() -> None:
    times: list[float] = []

    def script(asked: Asked) -> str:
        times.append(time.monotonic())
        return "(a)"

    with ScriptedServer(script) as server:
        started = time.monotonic()
        by_key(responder(server, requests_per_minute=1200.0).answer(asks_of(20)))
    # 0.05 s apart, from before the first, which may itself arrive late.
    assert times[-1] - started >= 19 * 0.05


def test_prompts_are_drawn_no_further_ahead_than_can_be_used() -> None:
    drawn = 0
    furthest = 0

    def source() -> Iterator[Ask]:
        nonlocal drawn
        for number in range(100_000):
            drawn += 1
            yield Ask(key=str(number), prompt="Q")

    with ScriptedServer(strict=False) as server:
        replies = responder(server, concurrency=4).answer(source())
        for number, _ in enumerate(replies):
            furthest = max(furthest, drawn - number)
            if number == 1000:
                break
        replies.close()  # type: ignore[attr-defined]
    assert drawn < 1100
    assert furthest <= 2 * 4 + 1


def test_a_reader_who_works_does_not_hold_up_requests() -> None:
    with ScriptedServer(delay_seconds=0.05) as server:
        replies = responder(server, concurrency=4).answer(asks_of(8))
        next(replies)
        wait_until(lambda: server.counts.total() == 8)
        # Nobody has asked for the second reply yet.
        assert server.counts.total() == 8
        assert len(list(replies)) == 7


def test_a_slow_source_does_not_hold_up_replies() -> None:
    has_reply = threading.Event()

    def source() -> Iterator[Ask]:
        for number, ask in enumerate(asks_of(200)):
            if number == 1:
                # Long before as many are drawn as may be.
                assert has_reply.wait(60)
            yield ask

    with ScriptedServer() as server:
        replies = responder(server).answer(source())
        next(replies)
        has_reply.set()
        assert len(list(replies)) == 199


def test_an_image_store_that_stalls_holds_up_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.jpg").write_bytes(jpeg(1))
    goes_on = threading.Event()
    num_on_disk = 0

    def read(uri: str) -> bytes:
        assert goes_on.wait(120)
        return storage.read_bytes(uri)

    def watch() -> None:
        nonlocal num_on_disk

        def count() -> int:
            nonlocal num_on_disk
            num_on_disk = sum(1 for _ in read_log(folder))
            return num_on_disk

        wait_until(lambda: count() == 12)
        goes_on.set()

    monkeypatch.setattr(asked_prompts, "read_image", read)
    asks = asks_of(20)
    asks[12] = dataclasses.replace(asks[12], image_uris=(str(tmp_path / "slow.jpg"),))
    folder = str(tmp_path / "log")
    with ScriptedServer() as server:
        asked = responder(server)
        with AnswerLog(folder, name=asked.name, identity=asked.identity(), flush_seconds=0.1) as log:
            watcher = threading.Thread(target=watch)
            watcher.start()
            replies = by_key(ask_all(asks, asked, log))
            watcher.join()
    # All that were asked before the one whose image did not come.
    assert num_on_disk == 12
    assert {key: reply.text for key, reply in replies.items()} == {ask.key: "(a)" for ask in asks}


def test_whoever_leaves_while_the_source_stalls_gets_it_back() -> None:
    stalls, goes_on = threading.Event(), threading.Event()
    num_drawn = 0

    def source() -> Iterator[Ask]:
        nonlocal num_drawn
        for ask in asks_of(200):
            if num_drawn == 3:
                stalls.set()
                assert goes_on.wait(60)
            num_drawn += 1
            yield ask

    with ScriptedServer() as server:
        asks = source()
        replies = responder(server).answer(asks)
        next(replies)
        assert stalls.wait(60)
        leaving = threading.Thread(target=replies.close)  # type: ignore[attr-defined]
        leaving.start()
        goes_on.set()
        leaving.join(60)
        assert not leaving.is_alive()
        # A generator that another thread still draws from would raise here.
        asks.close()  # type: ignore[attr-defined]
        assert num_drawn <= 17
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def test_an_error_of_the_source_is_raised_behind_what_was_answered() -> None:
    def source() -> Iterator[Ask]:
        yield from asks_of(3)
        wait_until(lambda: len(found) == 3)
        raise KeyError("the source broke")

    found: list[str] = []
    with ScriptedServer() as server, pytest.raises(KeyError, match="the source broke"):
        found.extend(reply.key for reply in responder(server).answer(source()))
    assert sorted(found) == ["k0", "k1", "k2"]


def test_leaving_early_closes_everything() -> None:
    with ScriptedServer(delay_seconds=0.02) as server:
        replies = responder(server).answer(asks_of(1000))
        next(replies)
        replies.close()  # type: ignore[attr-defined]
        # What was sent before is counted when the server comes to it; of 1,000 prompts no more than are asked at a time.
        seen = 0
        quiet_since = time.monotonic()
        until = quiet_since + 60
        while time.monotonic() < min(quiet_since + 1, until):
            if server._num_open or server.counts.total() != seen:
                seen, quiet_since = server.counts.total(), time.monotonic()
            time.sleep(0.05)
        assert time.monotonic() < until and seen < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


def test_an_error_of_the_source_is_raised_as_it_is() -> None:
    def source() -> Iterator[Ask]:
        yield from asks_of(3)
        raise KeyError("the source broke")

    with ScriptedServer() as server, pytest.raises(KeyError, match="the source broke"):
        list(responder(server).answer(source()))


def test_an_image_that_cannot_be_read_fails_its_prompt_alone(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    (tmp_path / "bad.jpg").write_bytes(jpeg(1)[:300])
    asks = [Ask(key=name, prompt="Q", image_uris=(str(tmp_path / f"{name}.jpg"),)) for name in ("good", "bad", "gone")]
    with ScriptedServer() as server:
        replies = by_key(responder(server).answer(asks))
        assert server.counts.total() == 1
    assert replies["good"].text == "(a)"
    assert "bad.jpg" in str(replies["bad"].error) and "gone.jpg" in str(replies["gone"].error)
    assert not replies["bad"].retry_helps


def test_what_ended_at_the_limit_of_tokens_is_seen() -> None:
    acts = {
        "Q0": Act(text="Well, the", finish="length"),
        "Q1": Act(message={"role": "assistant", "content": None, "refusal": "I cannot."}),
        "Q2": Act(message={"role": "assistant", "content": None, "reasoning_content": "hm"}, finish="length"),
        "Q3": Act(message={"role": "assistant", "content": [{"type": "text", "text": "(b)"}]}),
    }
    with ScriptedServer(lambda asked: acts[asked.prompt]) as server:
        replies = by_key(responder(server).answer(asks_of(4)))
    found = {key: (reply.text, reply.finish) for key, reply in replies.items()}
    assert found == {
        "k0": ("Well, the", "length"),
        "k1": ("I cannot.", "refusal"),
        "k2": ("", "length"),
        "k3": ("(b)", "stop"),
    }


def test_further_fields_and_openai_s_own_names_are_sent() -> None:
    fields: dict[str, Any] = {"extra_body": ("top_p=0.5", "guided_choice=[1]"), "seed": 7, "temperature": None}
    with ScriptedServer(extra=["guided_choice"]) as server:
        by_key(responder(server, max_tokens_field="max_completion_tokens", **fields).answer(asks_of(1)))
        body = dict(server.requests[0].body)
    del body["messages"]
    assert body == {
        "model": "scripted",
        "max_completion_tokens": 1024,
        "seed": 7,
        "top_p": 0.5,
        "guided_choice": [1],
    }
    with ScriptedServer() as server, server.expect_violations() as violations:
        reply = by_key(responder(server, **fields).answer(asks_of(1)))["k0"]
    assert reply.text is None and "guided_choice" in str(reply.error)
    assert len(violations) == 1


def test_a_proxy_of_the_environment_is_used_and_loopback_goes_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with ScriptedServer() as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
        gone = by_key(responder(server, num_retries=0).answer(asks_of(1)))["k0"]
        assert gone.text is None and server.counts.total() == 0
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        assert by_key(responder(server).answer(asks_of(1)))["k0"].text == "(a)"


@pytest.mark.parametrize(("scheme", "proxy_scheme"), [("https", "http://"), ("https", ""), ("http", "http://")])
def test_the_password_of_a_proxy_is_used_and_kept_nowhere(
    scheme: str, proxy_scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    seen: list[bytes] = []

    class Refuses(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.request.recv(1 << 16))
            self.request.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuses) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        port = proxy.server_address[1]
        monkeypatch.setenv(f"{scheme}_proxy", f"{proxy_scheme}alice:proxy%20password@127.0.0.1:{port}")
        asked = EndpointResponder(
            EndpointConfig(preset="vllm", model="m", base_url=f"{scheme}://api.example.com/v1", num_retries=0)
        )
        with AnswerLog(str(tmp_path), name="m", identity=asked.identity()) as log:
            (reply,) = ask_all(asks_of(1), asked, log, max_failed_share=1)
        proxy.shutdown()
    assert "407" in str(reply.error)
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:proxy password") in seen[0]
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"407" in written and b"alice" not in written and b"password" not in written


def test_one_responder_may_answer_twice_and_travels_as_a_config() -> None:
    with ScriptedServer() as server:
        first = responder(server)
        second = pickle.loads(pickle.dumps(first))
        assert second.config == first.config and second.identity() == first.identity()
        for one in (first, first, second):
            assert by_key(one.answer(asks_of(2)))["k1"].text == "(a)"
        assert dataclasses.is_dataclass(first.config)


def test_a_long_mixed_run_ends_with_exact_answers(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    # How often is counted exactly, so nothing runs out of time here.
    kinds = list(PASSING.values())

    def script(asked: Asked) -> str | Act:
        number = int(asked.prompt[1:])
        if number % 3 == 0 and asked.number <= number % 4:
            return kinds[number // 3 % len(kinds)]
        return f"({'ab'[number % 2]})"

    asks = [dataclasses.replace(ask, image_uris=(str(tmp_path / "1.jpg"),)) for ask in asks_of(120)]
    with ScriptedServer(script) as server:
        asked = responder(server, concurrency=32, max_seconds=300.0, max_answer_bytes=20_000)
        with AnswerLog(str(tmp_path / "log"), name="m", identity=asked.identity()) as log:
            replies = by_key(ask_all(asks, asked, log, max_failed_share=0))
        for number in range(120):
            assert server.counts[f"Q{number}"] == 1 + (number % 4 if number % 3 == 0 else 0)
    assert {key: reply.text for key, reply in replies.items()} == {f"k{n}": f"({'ab'[n % 2]})" for n in range(120)}
