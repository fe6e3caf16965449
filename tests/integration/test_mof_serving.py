"""A real Ray Serve endpoint on loopback with a small random checkpoint: its answers, its refusals, many at a time, a killed copy, jobs/evaluate.py."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmvp_ray.cluster import Inline
from mmvp_ray.errors import ConfigError
from mmvp_ray.evaluate.asking_config import AskingConfig
from mmvp_ray.evaluate.local_generation import LocalPrompt
from mmvp_ray.evaluate.local_spec import LocalModelConfig
from mmvp_ray.evaluate.mllm import MllmConfig
from mmvp_ray.evaluate.mllm_results import read_result
from mmvp_ray.evaluate.responder import Ask, Reply
from mmvp_ray.miniature.benchmark import make_mmvp
from mmvp_ray.mof.answering import mof_responder, open_model
from mmvp_ray.mof.serving.config import ServeConfig
from mmvp_ray.pipeline.evaluate import evaluate_mllm
from tests.conftest import free_port, jpeg
from tests.integration.mof_checkpoints import save_mof
from tests.processes import PATIENT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(500),
    # Ray Serve 2.60 declares its fields in a way that pydantic speaks against.
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "a-key-of-this-test"
PATIENCE_SECONDS = 240


class Served:
    """The endpoint of the tests, asked byte for byte."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def send(
        self, method: str, path: str, body: bytes | None = None, *, key: str | None = KEY
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return (
                response.status,
                json.loads(response.read() or b"{}"),
                {name.lower(): value for name, value in response.headers.items()},
            )
        finally:
            connection.close()

    def chat(self, **fields: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "what is it ?"}], "max_tokens": 8, **fields}
        return self.send("POST", "/v1/chat/completions", json.dumps(body).encode())

    def words(self, **fields: Any) -> str:
        status, body, _ = self.chat(**fields)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    def local(self, asks: list[Ask]) -> dict[str, Reply]:
        found = mof_responder(str(self.folder / "model"), LocalModelConfig(device="cpu"))
        return {reply.key: reply for reply in found.answer(asks)}


def data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Served]:
    from ray import serve

    from mmvp_ray.mof.serving import application

    folder = tmp_path_factory.mktemp("mof-serving")
    save_mof(folder / "model")
    for seed in range(8):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    (folder / "keys").write_text(f"# of the test\n{KEY}\n")
    config = ServeConfig(
        model=str(folder / "model"),
        name="tiny",
        api_key_file=str(folder / "keys"),
        cpus_per_replica=0.5,
        max_batch_size=8,
        batch_wait_seconds=0.2,
        max_waiting=16,
        max_answer_tokens=32,
        max_context_tokens=400,
        max_images=2,
        max_image_bytes=100_000,
        max_image_pixels=100_000,
        max_body_bytes=2_000_000,
        allow_image_urls=True,
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        with pytest.MonkeyPatch.context() as patch:
            # Serve sees that a copy is dead when it next asks for its health.
            patch.setattr(application, "HEALTH_SECONDS", 1.0)
            built = application.application(config)
        serve.run(built, name="mof", route_prefix="/")
        yield Served(port, folder)
    finally:
        serve.shutdown()


def test_an_answer_is_the_local_one(served: Served) -> None:
    asks = [
        Ask(key="text", prompt="what is it ?", max_tokens=8),
        Ask(key="image", prompt="a cat ?", image_uris=(str(served.folder / "1.jpg"),), max_tokens=8),
        Ask(
            key="two",
            prompt="left or right ?",
            image_uris=(str(served.folder / "2.jpg"), str(served.folder / "1.jpg")),
            system="polite",
            max_tokens=5,
        ),
    ]
    one, two = (data_url((served.folder / f"{seed}.jpg").read_bytes()) for seed in (1, 2))
    sent = {
        "text": {},
        "image": {"messages": user(image(one), "a cat ?")},
        "two": {
            "messages": [{"role": "developer", "content": "polite"}, *user(image(two), "left or right ?", image(one))],
            "max_tokens": None,
            "max_completion_tokens": 5,
        },
    }
    for key, expected in served.local(asks).items():
        status, body, headers = served.chat(**sent[key])
        assert status == 200 and headers["content-type"] == "application/json"
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
        assert choice["finish_reason"] == expected.finish
        tokens = (expected.num_prompt_tokens, expected.num_answer_tokens)
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == tokens
        assert body["usage"]["total_tokens"] == sum(map(int, filter(None, tokens)))
        assert (body["object"], body["model"]) == ("chat.completion", "tiny")
    assert len({body["id"] for _, body, _ in (served.chat(), served.chat())}) == 2


def test_turns_before_the_question_are_read(served: Served) -> None:
    before = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    assert served.words(messages=[*before, *user("what is it ?")]) != served.words()
    # A text that speaks of "<image>" is no image, in a string and in a part.
    assert served.words(messages=[{"role": "user", "content": "<image> ?"}]) == served.words(messages=user("<image> ?"))


def test_many_at_a_time_with_settings_of_their_own(served: Served) -> None:
    """Eight different images and settings at once: each has its own answer, which is the one that it has alone."""
    asked: list[dict[str, Any]] = [
        {"messages": user(image(data_url((served.folder / f"{seed}.jpg").read_bytes())), "what is it ?"), **settings}
        for seed, settings in enumerate(
            [
                {},
                {"max_tokens": 2},
                {"temperature": 1.0, "seed": 5},
                {"temperature": 1.0, "seed": 6},
                {"temperature": 1.5, "seed": 5, "top_p": 0.4},
                {"stop": ["cat", "dog", "the", "it"]},
                {"max_tokens": 20},
                {},
            ]
        )
    ]
    alone = [served.words(**one) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda one: served.words(**one), asked)) == alone
    assert len(set(alone)) >= 7
    drawn = {served.words(temperature=1.0, max_tokens=20) for _ in range(4)}
    assert len(drawn) > 1, "without a seed each answer is another one"


def test_the_other_addresses(served: Served) -> None:
    assert served.send("GET", "/healthz", key=None)[:2] == (200, {"status": "ok"})
    status, body, _ = served.send("GET", "/v1/models")
    assert status == 200 and [one["id"] for one in body["data"]] == ["tiny"] and body["object"] == "list"
    assert served.send("GET", "/v1/models/tiny")[1]["id"] == "tiny"


def test_an_answer_without_a_limit_has_the_room_that_there_is(served: Served) -> None:
    for count in (1, 80, 115):
        status, body, _ = served.chat(messages=user(*["a cat . "] * count), max_tokens=None)
        assert status == 200, body
        usage = body["usage"]
        assert usage["completion_tokens"] <= min(32, 400 - usage["prompt_tokens"])
    assert usage["prompt_tokens"] > 400 - 32, "the last one has less room than the limit of answers"


def test_refusals(served: Served) -> None:
    """Every way to be refused, as an OpenAI error object; the endpoint answers afterwards."""
    good = data_url((served.folder / "1.jpg").read_bytes())
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"model": "gpt"}, 404, "tiny"),
        ({"messages": []}, 400, "messages"),
        ({"stream": True}, 400, "stream"),
        ({"n": 2}, 400, "n"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"repetition_penalty": 1.2}, 400, "repetition_penalty"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_tokens": 33}, 400, "32"),
        ({"messages": user(*["a cat . "] * 140)}, 400, "400 tokens"),
        ({"messages": user("what \ud800 is it ?")}, 400, "surrogate"),
        ({"messages": user(*[image(good)] * 3, "?")}, 400, "2 images"),
        ({"messages": user(image("data:image/jpeg;base64,####"), "?")}, 400, "base64"),
        ({"messages": user(image(data_url(jpeg(1)[:200])), "?")}, 400, "decodes"),
        ({"messages": user(image(data_url(b"GIF89a but no more")), "?")}, 400, "broken GIF"),
        ({"messages": user(image(data_url(jpeg(1, width_px=500, height_px=500))), "?")}, 400, "100000 pixels"),
        ({"messages": user(image(data_url(b"\xff\xd8\xff" + bytes(200_000))), "?")}, 400, "100000 bytes"),
        ({"messages": user(image("file:///etc/passwd"), "?")}, 400, "scheme_refused"),
        ({"messages": user(image("http://127.0.0.1:1/a.jpg"), "?")}, 400, "refused"),
        ({"messages": user(image("http://[::ffff:10.0.0.1]/a.jpg"), "?")}, 400, "address_refused"),
        ({"messages": user(image("http://169.254.169.254/latest"), "?")}, 400, "address_refused"),
    ]
    for fields, status, words in cases:
        found, body, _ = served.chat(**fields)
        assert (found, set(body)) == (status, {"error"}), (fields, body)
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert words in body["error"]["message"] and "\n" not in body["error"]["message"], (words, body)
    for method, path, data, key, status in (
        ("POST", "/v1/chat/completions", b"{", KEY, 400),
        ("POST", "/v1/chat/completions", b"[" * 100_000, KEY, 400),
        ("POST", "/v1/chat/completions", b"x" * 2_000_001, KEY, 413),
        ("POST", "/v1/chat/completions", b"{}", None, 401),
        ("POST", "/v1/chat/completions", b"{}", "another", 401),
        ("GET", "/v1/models", None, None, 401),
        ("GET", "/v1/chat/completions", None, KEY, 405),
        ("GET", "/v1/models/other", None, KEY, 404),
        ("POST", "/v1/embeddings", b"{}", KEY, 404),
    ):
        found, body, _ = served.send(method, path, data, key=key)
        assert found == status and "error" in body, (path, body)
    assert served.words()


def test_a_body_without_a_length_is_cut_off_too(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_SECONDS)
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        chunks = (b"x" * 100_000 for _ in range(30))
        connection.request("POST", "/v1/chat/completions", chunks, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # Refused before all of it was sent.
    finally:
        connection.close()
    assert served.words()


def test_images_are_fetched_where_private_addresses_are_allowed(served: Served) -> None:
    """The fetcher itself: the endpoint of these tests may not reach this machine, which `test_refusals` shows."""
    from mmvp_ray.mof.serving.api_errors import ApiError
    from mmvp_ray.mof.serving.chat_images import ImageLimits, fetcher, load_images

    data = (served.folder / "1.jpg").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/moved" else 200)
            self.send_header("Location", "/1.jpg")
            self.send_header("X-Robots-Tag", "noai")
            self.end_headers()
            self.wfile.write(b"" if self.path == "/moved" else data)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, limits = f"http://127.0.0.1:{server.server_port}", ImageLimits(max_bytes=100_000, max_pixels=100_000)
    try:
        allowed = fetcher(max_bytes=100_000, allow_private=True)
        (fetched,), (sent,) = load_images([f"{url}/moved"], limits, allowed), load_images([data_url(data)], limits)
        assert fetched.tobytes() == sent.tobytes()
        with pytest.raises(ApiError, match="too_many_bytes"):
            load_images([f"{url}/1.jpg"], limits, fetcher(max_bytes=100, allow_private=True))
        with pytest.raises(ApiError, match=r"address_refused|port_refused"):
            load_images([f"{url}/1.jpg"], limits, fetcher(max_bytes=100_000, allow_private=False))
        with pytest.raises(ApiError, match="fetches no images"):
            load_images([f"{url}/1.jpg"], limits)
    finally:
        server.shutdown()


def test_too_many_at_a_time_are_told_to_come_back(served: Served) -> None:
    fields = {"max_tokens": 32, "messages": user(image(data_url((served.folder / "3.jpg").read_bytes())), "a dog ?")}
    expected = served.words(**fields)
    with ThreadPoolExecutor(48) as pool:
        found = list(pool.map(lambda _: served.chat(**fields), range(96)))
    for status, body, headers in found:
        if status == 200:
            assert body["choices"][0]["message"]["content"] == expected
        else:
            assert status == 503 and body["error"]["code"] == "overloaded" and headers["retry-after"] == "1"
    assert {status for status, _, _ in found} == {200, 503}


def test_our_client_evaluates_through_it(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMVP_RAY_API_KEY", KEY)
    benchmark = make_mmvp(tmp_path / "bench", num_pairs=6, seed=3)
    models = {"served": "ours:tiny", "local": f"hf:{served.folder / 'model'}"}
    for name, model in models.items():
        evaluate_mllm(
            MllmConfig(
                benchmark=benchmark.url,
                model=model,
                asking=AskingConfig(base_url=served.base_url, device="cpu"),
                max_tokens=6,
                blind=True,
                out=str(tmp_path / name),
            )
        )
    by_variant = [read_result(str(tmp_path / name)).by_variant for name in models]
    assert by_variant[0] == by_variant[1]
    asks = [
        Ask(key=str(seed), prompt="what is it ?", image_uris=(str(served.folder / f"{seed}.jpg"),), max_tokens=9)
        for seed in range(8)
    ]
    endpoint = open_model(AskingConfig(base_url=served.base_url), "ours:tiny", Inline())
    replies = {reply.key: reply for reply in endpoint.answer(asks)}
    for key, expected in served.local(asks).items():
        found = replies[key]
        assert (found.text, found.finish, found.num_prompt_tokens) == (
            expected.text,
            expected.finish,
            expected.num_prompt_tokens,
        )


def test_a_killed_copy_comes_back(served: Served) -> None:
    expected = served.words()
    before = _replica_pids()
    assert len(before) == 1
    os.kill(before.pop(), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            status, body, _ = served.chat()
        except (OSError, http.client.HTTPException, ValueError):
            status, body = 0, {}
        if status == 200:
            break
        time.sleep(0.5)
    assert body["choices"][0]["message"]["content"] == expected


def _replica_pids() -> set[int]:
    """Processes of copies: Ray writes an actor's class into its process's title."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:mof:model") and _is_ours(int(path.parent.name)):
            found.add(int(path.parent.name))
    return found


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one: other tests may run a Ray of their own here."""
    import psutil

    return any(parent.pid == os.getpid() for parent in psutil.Process(pid).parents())


def test_a_copy_that_drains_answers_what_it_holds_in_time_and_takes_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.requests import Request

    from mmvp_ray.mof.serving.replica import ChatReplica

    answers = asyncio.Event()

    async def complete(self: ChatReplica, prompt: LocalPrompt) -> Any:
        await answers.wait()
        return self._generator.attempt([prompt])[0]

    # Serve's batches are for its own processes.
    complete.set_max_batch_size = complete.set_batch_wait_timeout_s = lambda value: None  # type: ignore[attr-defined]
    monkeypatch.setattr(ChatReplica, "_complete", complete)

    def request(max_tokens: int) -> Request:
        fields = {"model": "model", "messages": user("what is it ?"), "max_tokens": max_tokens}
        body = json.dumps(fields).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        return Request({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}, receive)

    async def holding() -> tuple[ChatReplica, asyncio.Future[Any]]:
        copy = ChatReplica(ServeConfig(model=str(served.folder / "model")), "cpu", frozenset())
        running = asyncio.ensure_future(copy(request(4)))
        while not copy.num_held:
            await asyncio.sleep(0.01)
        return copy, running

    def is_stopping(response: Any) -> bool:
        code = json.loads(bytes(response.body))["error"]["code"]
        return (response.status_code, response.headers["retry-after"], code) == (503, "1", "stopping")

    async def scenario() -> None:
        copy, running = await holding()
        assert await copy.drain(0.0) == 1
        # Its answer never comes: Serve's own end of a copy waits for what is held.
        assert is_stopping(await asyncio.wait_for(running, 30))
        assert is_stopping(await copy(request(4))) and await copy.drain(0.0) == 0

        copy, running = await holding()
        draining = asyncio.ensure_future(copy.drain(PATIENCE_SECONDS))
        await asyncio.sleep(0)
        assert is_stopping(await copy(request(4))) and not running.done()
        answers.set()
        assert await draining == 0
        assert running.done() and running.result().status_code == 200

    asyncio.run(scenario())


def test_a_dead_copy_takes_no_time_from_the_others(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two copies, of which one dies while both drain: the other one answers what it holds before the drain ends."""
    from ray import serve

    from mmvp_ray.mof.serving import application
    from mmvp_ray.mof.serving.replica import ChatReplica

    go = tmp_path / "go"

    class Waiting(ChatReplica):
        """A copy without a model, whose answers wait for a file."""

        def __init__(self) -> None:
            self._config = ServeConfig(model="waiting")
            self._held_until = set()
            self._is_stopping = False

        async def _routed(self, request: Any) -> Any:
            from starlette.responses import JSONResponse

            async with self._held():
                while not go.exists():
                    await asyncio.sleep(0.05)
                return JSONResponse({"pid": os.getpid()})

        async def state(self) -> tuple[int, int, bool]:
            return os.getpid(), self.num_held, self._is_stopping

    copies: Any = serve.deployment(
        num_replicas=2, ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=1.0, max_ongoing_requests=100
    )(Waiting)
    handle = serve.run(copies.bind(), name="waiting", route_prefix="/waiting")
    monkeypatch.setattr(application, "NAME", "waiting")

    def states() -> list[tuple[int, int, bool]]:
        found = handle.broadcast("state").results(timeout_s=PATIENCE_SECONDS)
        assert len(found) == 2
        return found

    try:
        with ThreadPoolExecutor(64) as pool:
            asked = []
            while not all(num_held for _, num_held, _ in states()):
                asked.append(pool.submit(served.send, "GET", "/waiting"))
                while sum(num_held for _, num_held, _ in states()) < len(asked):
                    time.sleep(0.05)
            draining = pool.submit(application._drain, PATIENCE_SECONDS)
            while not all(is_stopping for _, _, is_stopping in states()):
                time.sleep(0.1)
            # The first one: whoever asks for one result after the other meets it before the living one's.
            (killed, _, _), (living, num_living, _) = states()
            os.kill(killed, signal.SIGKILL)
            while not any(one.done() for one in asked):
                time.sleep(0.05)
            with pytest.raises(TimeoutError):
                draining.result(timeout=2)
            go.touch()
            draining.result(timeout=PATIENCE_SECONDS)
            answers = [one.result()[:2] for one in asked if not one.exception()]
        assert answers.count((200, {"pid": living})) == num_living
        assert [record.levelname for record in caplog.records if record.name == application.__name__] == ["WARNING"]
    finally:
        go.touch()
        serve.delete("waiting")


def test_a_drain_without_copies_ends_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where SIGTERM comes before there is a copy, or the model does not load."""
    from mmvp_ray.mof.serving import application

    monkeypatch.setattr(application, "NAME", "absent")
    application._drain(PATIENCE_SECONDS)
    assert not [record for record in caplog.records if record.name == application.__name__]


@pytest.mark.parametrize("where", ["start", "say", "wait"])
def test_requests_are_drained_wherever_the_stop_comes(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of the copies on, requests are taken: a copy may have some before the others and the line are there."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from mmvp_ray.mof.serving import application

    done: list[str] = []

    def step(name: str) -> Any:
        def run(*_: Any, **__: Any) -> None:
            done.append(name)
            if name == where:
                raise KeyboardInterrupt

        return run

    serve = SimpleNamespace(
        status=lambda: SimpleNamespace(proxies={}), start=lambda **_: None, shutdown=step("shutdown")
    )
    for name, stand_in in {
        "serve": serve,
        "Session": lambda _: nullcontext(SimpleNamespace(start=lambda: None)),
        "application": lambda _: None,
        "_checked": lambda model: model,
        "_started": step("start"),
        "_drain": step("drain"),
        "time": SimpleNamespace(sleep=step("wait")),
    }.items():
        monkeypatch.setattr(application, name, stand_in)
    with pytest.raises(KeyboardInterrupt):
        application.run_server(ServeConfig(model="m"), step("say"))
    assert done[-3:] == [where, "drain", "shutdown"]


def test_the_job_serves_and_stops_in_order(served: Served, tmp_path: Path) -> None:
    """As a user starts it, in a Ray of its own; an answer that is on its way when SIGTERM comes is given."""
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    # Room for one request, so that whether it is there can be asked; and time for its answer on a machine that stalls.
    flags = ["--max-waiting", "1", "--max-batch-size", "1", "--stop-seconds", "200"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PATIENT,
            "jobs/serve_mof.py",
            "--model",
            str(served.folder / "model"),
            "--port",
            str(port),
            *flags,
        ],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"serving model at http://127.0.0.1:{port}/v1\n", process.communicate()[1][-2000:]
        other = Served(port, served.folder)

        def status_of(max_tokens: int) -> int:
            return other.chat(model="model", max_tokens=max_tokens, messages=user("what is it ?"))[0]

        def answered() -> int:
            while (status := status_of(400)) == 503:
                time.sleep(0.01)
            return status

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(answered)
            # Asked for no token a request is refused at once, for want of room or for that.
            while status_of(0) != 503:
                if running.done():
                    assert running.result() == 200
                    running = pool.submit(answered)
            process.send_signal(signal.SIGTERM)
            assert running.result() == 200
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 143, errors[-2000:]
    finally:
        process.kill()
        process.wait()


def test_the_job_says_in_one_line_what_it_cannot_serve() -> None:
    done = subprocess.run(
        [sys.executable, "jobs/serve_mof.py", "--model", str(REPOSITORY / "configs")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and "config.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--port", "0", "--model", "x"], "--port"),
        ([], "--model"),
        (["--model", "x", "--allow-private-image-urls"], "--allow-image-urls"),
    ],
)
def test_what_the_job_cannot_serve(flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, up to the error that ends the job as the one above."""
    monkeypatch.setattr(sys, "argv", ["serve_mof.py", *flags])
    job = runpy.run_path(str(REPOSITORY / "jobs/serve_mof.py"))
    with pytest.raises(ConfigError, match=re.escape(words)):
        job["main"]()
