"""jobs/ingest.py laion against img2dataset's own command line on loopback: `python -m benchmarks.ingest [--urls N] [--rounds N] [--json FILE]`.

The same list of URLs, as many processes and threads, the same shards, bytes kept as they came by both. A small server in a process of
its own answers from memory. Rounds alternate; medians are printed. Two figures:

* download: URLs per second from the first shard's beginning to the last one's end, as img2dataset's own statistics of each shard tell it.
* command: URLs per second of the whole command line, start-up (Ray here, two processes there) and the reading of the list included.

Peak memory is that of all processes of a command: what each has for itself, and the largest part that one shares.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contest import family, machine, tree_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_PROCESSES = 2
NUM_SHARDS = 10
"""Five for each process: img2dataset starts a process anew after five."""
NUM_PICTURES = 64
SAMPLE_SECONDS = 0.2
GOAL = 0.8


def picture(seed: int, side_px: int) -> bytes:
    """A JPEG with photograph-like statistics."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((side_px, side_px))
    noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (side_px, side_px, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


class Answer(asyncio.Protocol):
    """Answers any request with one of a few pictures, and closes."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers = answers
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer when the head is whole."""
        self._data += data
        if b"\r\n\r\n" in self._data:
            number = int(self._data.split(b" ", 2)[1].rsplit(b"/", 1)[-1])
            self._transport.write(self._answers[number % len(self._answers)])
            self._transport.close()


def serve(there: Connection, side_px: int) -> None:
    """Serve pictures on a free port of the loopback interface until killed."""
    pictures = [picture(seed, side_px) for seed in range(NUM_PICTURES)]
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"
    answers = [head.format(len(data)).encode() + data for data in pictures]

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Answer(answers), "127.0.0.1", 0, backlog=4096)
        there.send((server.sockets[0].getsockname()[1], statistics.mean(map(len, pictures))))
        await server.serve_forever()

    asyncio.run(run())


def img2dataset_command(metadata: Path, out: Path, num_urls: int, num_threads: int) -> list[str]:
    """img2dataset's own command line, told to keep the bytes, which is the least work it can do."""
    code = "import sys; from img2dataset import main; sys.argv[0] = 'img2dataset'; main()"
    flags = {
        "url_list": str(metadata),
        "input_format": "parquet",
        "url_col": "URL",
        "caption_col": "TEXT",
        "output_format": "webdataset",
        "output_folder": str(out),
        "processes_count": str(NUM_PROCESSES),
        "thread_count": str(num_threads),
        "number_sample_per_shard": str(num_urls // NUM_SHARDS),
        "resize_mode": "no",
        "disable_all_reencoding": "True",
        "extract_exif": "False",
        "save_additional_columns": '["similarity","punsafe"]',
        "user_agent_token": "benchmark",
    }
    return [sys.executable, "-c", code, *(f"--{name}={value}" for name, value in flags.items())]


def our_command(metadata: Path, out: Path, num_urls: int, num_threads: int) -> list[str]:
    """jobs/ingest.py with as many threads; manners off, for there is one host only."""
    flags = {
        "metadata": str(metadata),
        "out": str(out),
        "num-threads": str(num_threads),
        "num-urls-per-shard": str(num_urls // NUM_SHARDS),
        "connections-per-host": str(num_threads),
        "delay-per-host-seconds": "0",
        "min-similarity": "0",
        "max-punsafe": "1",
    }
    command = [sys.executable, str(REPOSITORY / "jobs/ingest.py"), "laion", "--allow-private-addresses"]
    for name, value in flags.items():
        command += [f"--{name}", value]
    return command


def measure(command: list[str], out: Path, num_urls: int) -> dict[str, float]:
    """Run a command; its rates and its peak memory."""
    # Ray's workers give way to every other process, which here is the server that both ask; img2dataset's do not.
    as_others = {"RAY_worker_niceness": "0"}
    environment = {**os.environ, **as_others, "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        peak_bytes = 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, tree_bytes(family(process.pid)))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{command[:3]} failed: {log.read()[-2000:].decode(errors='replace')}")
    stats = [json.loads(path.read_bytes()) for path in [*out.glob("stats/*.json"), *out.glob("*_stats.json")]]
    assert sum(found["successes"] for found in stats) == num_urls, "every URL is an image"
    download = max(found["end_time"] for found in stats) - min(found["start_time"] for found in stats)
    return {"download": num_urls / download, "command": num_urls / seconds, "peak_mib": peak_bytes / 2**20}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=16_000, help="URLs of the list")
    parser.add_argument("--side", type=int, default=320, help="side of the pictures in pixels")
    parser.add_argument("--threads", type=int, default=32, help="threads of each of the two processes")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median is printed")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    num_urls = args.urls // NUM_SHARDS * NUM_SHARDS
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(there, args.side), daemon=True)
    server.start()
    port, mean_bytes = here.recv()
    commands = {"img2dataset": img2dataset_command, "mmvp-ray": our_command}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    try:
        with tempfile.TemporaryDirectory() as folder:
            metadata = Path(folder, "metadata", "part-00000.parquet")
            metadata.parent.mkdir()
            columns = {
                "URL": [f"http://127.0.0.1:{port}/{index}" for index in range(num_urls)],
                "TEXT": [f"caption number {index}" for index in range(num_urls)],
                "similarity": np.full(num_urls, 0.3),
                "punsafe": np.full(num_urls, 0.1, np.float32),
            }
            pq.write_table(pa.table(columns), metadata)
            for number in range(args.rounds):
                for name in list(commands)[:: 1 if number % 2 == 0 else -1]:
                    out = Path(folder, name)
                    found = measure(commands[name](metadata, out, num_urls, args.threads), out, num_urls)
                    rounds[name].append(found)
                    shutil.rmtree(out)
                    print(
                        f"{name:12} download {found['download']:7.0f} URLs/s   command {found['command']:7.0f} URLs/s   "
                        f"peak {found['peak_mib']:6,.0f} MiB",
                        flush=True,
                    )
    finally:
        server.kill()
        server.join()
    medians = {
        name: {key: statistics.median(found[key] for found in rounds[name]) for key in rounds[name][0]}
        for name in commands
    }
    print(
        f"{num_urls:,} URLs of {mean_bytes / 1e3:.0f} kB, {NUM_PROCESSES} x {args.threads} threads, medians of {args.rounds}:"
    )
    for key in ("download", "command"):
        ratio = medians["mmvp-ray"][key] / medians["img2dataset"][key]
        print(f"{key}: mmvp-ray / img2dataset = {ratio:.2f} (goal {GOAL})")
    for name, found in medians.items():
        print(f"{name}: peak memory {found['peak_mib']:,.0f} MiB")
    if args.json:
        figures = {"machine": machine(), "num_urls": num_urls, "rounds": rounds, "medians": medians}
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
