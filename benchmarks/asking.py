"""Questions per second to an endpoint that answers after 100 ms: `python -m benchmarks.asking [--questions N] [--rounds N] [--json FILE]`.

A small server in a process of its own answers every chat completion after a fixed time, whatever it holds. The client is what
jobs/evaluate.py mllm runs: ask_all over EndpointResponder and an AnswerLog on disk, each question with a JPEG of about 10 kB that is
read from disk, no two questions with the same picture (two questions share one in MMVP, so this is the harder case). At concurrency 32
and 100 ms, 320 answers per second are possible; the goal is 0.9 of them. The best of the rounds is the figure, since a busy machine only
takes away. Peak memory is that of the client's process, with twice as many questions beside it: what is added is what is remembered of each, about a kilobyte.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.contest import machine
from benchmarks.ingest import picture

LATENCY_SECONDS = 0.1
GOAL_SHARE = 0.9
NUM_PICTURES = 256
SIDE_PX = 168
"""Of a picture of about 10 kB."""


class Answer(asyncio.Protocol):
    """Answers each request of a kept connection with one completion, after a while."""

    body = json.dumps(
        {
            "id": "chatcmpl-benchmark",
            "object": "chat.completion",
            "model": "benchmark",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "(a)"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 700, "completion_tokens": 3, "total_tokens": 703},
        }
    ).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        """Answer when head and body are whole."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._data[:end]).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self._data) < end + 4 + length:
                return
            del self._data[: end + 4 + length]
            asyncio.get_running_loop().call_later(LATENCY_SECONDS, self._transport.write, self.answer)


def serve(there: Connection) -> None:
    """Serve on a free port of the loopback interface until killed."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0, backlog=1024)
        there.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What a client measured of itself."""

    num_questions: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    load: float

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.num_questions / self.seconds


def ask(there: Connection, port: int, pictures: str, num_questions: int, concurrency: int) -> None:
    """Ask so many questions in this process."""
    from mmvp_ray.evaluate.answer_log import AnswerLog
    from mmvp_ray.evaluate.asking import ask_all
    from mmvp_ray.evaluate.endpoint import EndpointResponder
    from mmvp_ray.evaluate.endpoint_config import EndpointConfig
    from mmvp_ray.evaluate.responder import Ask

    config = EndpointConfig(
        preset="vllm", model="benchmark", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency
    )
    responder = EndpointResponder(config)

    def asks() -> Iterator[Ask]:
        for number in range(num_questions):
            prompt = f"{number}: is the dog's tail up or down?\n(a) up (b) down\nAnswer with the letter."
            yield Ask(key=str(number), prompt=prompt, image_uris=(f"{pictures}/{number}.jpg",), max_tokens=16)

    # Imports and the first connection are no part of the rate.
    list(responder.answer([Ask(key="first", prompt="Q")]))
    with tempfile.TemporaryDirectory() as folder:
        started, cpu = time.perf_counter(), time.process_time()
        with AnswerLog(folder, name=responder.name, identity=responder.identity()) as log:
            num_answers = sum(reply.text == "(a)" for reply in ask_all(asks(), responder, log))
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert num_answers == num_questions
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = Round(
        num_questions=num_questions, seconds=seconds, cpu_seconds=cpu, peak_bytes=peak_bytes, load=os.getloadavg()[0]
    )
    there.send(found)


def one_round(port: int, pictures: str, num_questions: int, concurrency: int) -> Round:
    """A client in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=ask, args=(there, port, pictures, num_questions, concurrency))
    process.start()
    there.close()
    try:
        found: Round = here.recv()
    finally:
        process.join()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    facts = machine()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    port = here.recv()
    folder = tempfile.mkdtemp()
    try:
        kinds = [picture(seed, SIDE_PX) for seed in range(NUM_PICTURES)]
        for number in range(2 * args.questions):
            # What follows a JPEG's end is not looked at, and makes each picture another one.
            data = kinds[number % NUM_PICTURES] + number.to_bytes(4, "big")
            Path(folder, f"{number}.jpg").write_bytes(data)
        mean_kb = sum(map(len, kinds)) / len(kinds) / 1e3
        possible = args.concurrency / LATENCY_SECONDS
        print(f"{facts}\n{args.questions:,} questions, pictures of {mean_kb:.1f} kB, concurrency {args.concurrency}")
        rounds = []
        for _ in range(args.rounds):
            rounds.append(one_round(port, folder, args.questions, args.concurrency))
            print(_line(rounds[-1], possible), flush=True)
        best = max(rounds, key=lambda found: found.per_second)
        share = best.per_second / possible
        print(f"best: {best.per_second:.1f}/s, {share:.3f} of {possible:.0f}/s (goal {GOAL_SHARE})")
        twice = one_round(port, folder, 2 * args.questions, args.concurrency)
        print(f"twice as many questions: {_line(twice, possible)}")
        if args.json:
            results = {
                "machine": facts,
                "questions": args.questions,
                "concurrency": args.concurrency,
                "possible_per_second": possible,
                "rounds": [asdict(found) | {"per_second": found.per_second} for found in rounds],
                "twice": asdict(twice) | {"per_second": twice.per_second},
                "best_share": share,
            }
            args.json.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        server.terminate()
        shutil.rmtree(folder, ignore_errors=True)


def _line(found: Round, possible: float) -> str:
    return (
        f"  {found.per_second:6.1f} answers/s ({found.per_second / possible:.3f}), {1e3 * found.cpu_seconds / found.num_questions:.2f} ms of CPU an "
        f"answer, peak {found.peak_bytes / 2**20:.0f} MiB, load {found.load:.1f}"
    )


if __name__ == "__main__":
    main()
