"""Every benchmark that `python -m benchmarks` runs, in the page's order: its command, what it needs, its section."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import gpu
from benchmarks.section import Section
from benchmarks.sections import answering, embedding, models, searching, starting


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the command line says about all benchmarks."""

    is_quick: bool = False
    num_rounds: int | None = None
    clip_retrieval_python: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One of them.

    Attributes:
        name: Of its result and of --only.
        module: What `python -m` runs.
        title: Its heading on the page.
        about: One paragraph: what is compared with what.
        arguments: At the size that counts; PATH stands for the Python of clip-retrieval's environment.
        quick: At a size that only shows that all runs.
        section: How it is shown.
        lacks: What it needs and this machine has not, in words; empty if all is there.
        takes_rounds: Whether --rounds means rounds of the same measurement.
        writes_section: Its module has page(results), which gives the section: it also needs the figures of others.
        counts_with: The arguments that a file from elsewhere must have been written with to be taken.
        parts: Names of its figures that several calls on one machine may measure, one or more by each.
        limit_seconds: After so long it is ended.
    """

    name: str
    module: str
    title: str
    about: str
    section: Section
    arguments: str = ""
    quick: str = ""
    lacks: Callable[[Wishes], str] = lambda wishes: ""
    takes_rounds: bool = True
    writes_section: bool = False
    counts_with: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    limit_seconds: float = 3600.0

    def words(self, wishes: Wishes) -> list[str]:
        """Its arguments, PATH as it stands."""
        words = (self.quick if wishes.is_quick else self.arguments).split()
        if wishes.num_rounds is None or not self.takes_rounds:
            return words
        if "--rounds" in words:
            place = words.index("--rounds")
            words = words[:place] + words[place + 2 :]
        return [*words, "--rounds", str(wishes.num_rounds)]

    def command(self, wishes: Wishes) -> str:
        """As the page says it."""
        return " ".join(["python -m", self.module, *self.words(wishes)])

    @property
    def is_there(self) -> bool:
        """Whether its module exists."""
        return importlib.util.find_spec(self.module) is not None


def lacks_gpu(wishes: Wishes) -> str:
    """What benchmarks.gpu lacks here."""
    # In another process: torch stays out of the one that waits beside all measurements.
    code = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return "" if done.returncode == 0 else "a CUDA GPU that torch can use"


def lacks_clip_retrieval(wishes: Wishes) -> str:
    """What benchmarks.clip_retrieval lacks here."""
    python = wishes.clip_retrieval_python
    if not python:
        return "--clip-retrieval-python PATH, the Python of an environment with clip-retrieval"
    return "" if Path(python).with_name("clip-retrieval").exists() else f"clip-retrieval beside {python}"


BENCHMARKS = (
    Benchmark(
        name="start_up",
        module="benchmarks.start_up",
        title="Starting",
        about="Short processes beside a bare Python, each round one after the other; then whole runs of "
        "`jobs/mine.py` on the miniature world, each in a new folder, and the same command again there. Plain "
        "runs: `jobs/mine.py` starts a Ray of its own.",
        quick="--rounds 2 --runs 1 --images 512",
        section=starting.START_UP,
    ),
    Benchmark(
        name="memory",
        module="benchmarks.memory",
        title="Memory by process",
        about="All processes of `jobs/mine.py` on the miniature world, by what they do, as proportional set sizes "
        "(PSS): what several processes share counts in equal parts, so that sums are right.",
        quick="--rounds 1 --images 512",
        section=starting.MEMORY,
    ),
    Benchmark(
        name="store",
        module="benchmarks.store",
        title="The store",
        about="What a table takes on the disk, and how fast vectors are written and read, beside numpy's own files "
        "and pyarrow's own reader in the same rounds. Speeds over raw bytes, from the page cache.",
        quick="--num-images 8192 --pictures 512 --rounds 2",
        section=embedding.STORE,
    ),
    Benchmark(
        name="embed",
        module="benchmarks.embed",
        title="The embedding pass",
        about="The pipeline on Ray beside loops without it, in the steady state, both on two cores: "
        "JPEGs of 500 x 375 px with the statistics of photographs.",
        arguments="--rounds 3",
        quick="--rounds 1 --noop-shards 6 --noop-images 128 --encode-shards 4 --encode-images 32",
        section=embedding.EMBED,
    ),
    Benchmark(
        name="drivers",
        module="benchmarks.drivers",
        title="Driving many actors",
        about="What a piece costs the process that drives Ray Data, by the actors that it looks after: tars of one "
        "small image, actors that wait as a GPU has them wait, the same number of pieces a second in all cases.",
        quick="--num-pieces 60 --actors 4",
        section=embedding.DRIVERS,
    ),
    Benchmark(
        name="decode",
        module="benchmarks.decode",
        title="Decoding",
        about="Ways of decoding and resizing photographs, one core, beside each other in the same run.",
        quick="--rounds 1",
        section=embedding.DECODE,
    ),
    Benchmark(
        name="clip_retrieval",
        module="benchmarks.clip_retrieval",
        title="Beside clip-retrieval",
        about="The same tars through the same open_clip ViT-B/32 with random weights, fp32 on the CPU: our "
        "embedding pass and clip-retrieval's own inference command, in turns. PATH is the Python of an "
        "environment of clip-retrieval's own.",
        arguments="--python PATH --images 1024 --rounds 3",
        quick="--python PATH --images 384 --rounds 1",
        lacks=lacks_clip_retrieval,
        section=embedding.CLIP_RETRIEVAL,
    ),
    Benchmark(
        name="search",
        module="benchmarks.search",
        title="The exact join and peers",
        about="Engines and peers on the same synthetic vectors (768 numbers, fp16 in a store), every contender in a "
        "process of its own with as many cores. `bare` is the products of the vectors as they are, tile by tile, "
        "and nothing else, where the exact engine multiplies vectors shortened along principal axes. `exact-fp32` is "
        "that engine without the bfloat16 products of a CPU with AMX.",
        arguments="--num-images 50000 100000 --engines exact exact-fp32 --peers bare-bf16 bare-fp32 "
        "faiss-flat-range one-cell-of-800 "
        "--peer-seconds 60 --rounds 3",
        quick="--num-images 10000 20000 --engines exact exact-fp32 --peers bare-bf16 bare-fp32 faiss-flat-range "
        "--peer-seconds 10 --rounds 1",
        section=searching.SEARCH,
    ),
    Benchmark(
        name="search_growth",
        module="benchmarks.search",
        title="Search as the corpus grows",
        about="The engines that do not compare all pairs, from 50,000 images to 400,000; recall against exact scans "
        "of random anchors.",
        arguments="--num-images 50000 100000 400000 --engines routed ivfpq --peers bare-fp32 --peer-seconds 30 "
        "--anchors 2000 --rounds 1",
        quick="--num-images 10000 20000 --engines routed ivfpq --peers bare-fp32 --peer-seconds 10 --anchors 1000 "
        "--rounds 1",
        section=searching.SEARCH_GROWTH,
    ),
    Benchmark(
        name="copies",
        module="benchmarks.copies",
        title="Copies",
        about="The same world without planted copies, and with 30 % near-copies of which one image has 5,000: "
        "near-copies collapsed, and the join of what is left.",
        quick="--num-images 20000",
        takes_rounds=False,
        section=searching.COPIES,
    ),
    Benchmark(
        name="passes",
        module="benchmarks.passes",
        title="Passes over many pieces in an object store",
        about="Reading ids of every piece from a server on loopback that answers late, as one process does it and as "
        "tasks on all cores do, in turns; the server takes its share of the same cores.",
        quick="--num-pieces 300 --rounds 1",
        section=searching.PASSES,
    ),
    Benchmark(
        name="hygiene",
        module="benchmarks.hygiene",
        title="Hygiene and bookkeeping out of core",
        about="What one process does with 1e8 near pairs, and with a plan of 500,000 pieces; peak memory of each "
        "stage.",
        quick="--num-pairs 1000000 --num-pieces 5000",
        takes_rounds=False,
        limit_seconds=7200,
        section=searching.HYGIENE,
    ),
    Benchmark(
        name="mof",
        module="benchmarks.mof",
        title="Training Mixture-of-Features",
        about="The training loop on Ray, JPEGs fetched, decoded and tokenised beside it, over a bare loop on "
        "batches made beforehand, in float32 with one thread.",
        arguments="--steps 40 --rounds 3",
        quick="--steps 10 --rounds 1",
        section=models.MOF,
    ),
    Benchmark(
        name="ingest",
        module="benchmarks.ingest",
        title="Downloading beside img2dataset",
        about="The same list of URLs of a server on loopback, as many processes and threads, the bytes kept as they "
        "came by both; rounds alternate.",
        arguments="--rounds 3",
        quick="--urls 2000 --rounds 1",
        section=embedding.INGEST,
    ),
    Benchmark(
        name="asking",
        module="benchmarks.asking",
        title="Asking an endpoint",
        about="What `jobs/evaluate.py mllm` runs, every answer logged, against a server that answers after 100 ms; "
        "at concurrency 32 that allows 320 answers/s.",
        arguments="--rounds 3",
        quick="--questions 1000 --rounds 1",
        section=answering.ASKING,
    ),
    Benchmark(
        name="annotate",
        module="benchmarks.annotate",
        title="Annotation",
        about="`jobs/annotate.py serve` and people whose browsers are kept connections, on the same cores; "
        "photographs of 554 x 554 px.",
        quick="--pairs 2000 --annotators 5 --seconds 15 --times 50",
        takes_rounds=False,
        section=answering.ANNOTATE,
    ),
    Benchmark(
        name="job_start",
        module="benchmarks.job_start",
        title="A submitted job",
        about="From `ray job submit` of the main job to its first embedded piece, on a quiet head of two CPUs; the "
        "first job is the first that the head sees.",
        arguments="--rounds 3",
        quick="--rounds 1 --images 200",
        section=starting.JOB_START,
    ),
    Benchmark(
        name="chaos",
        module="benchmarks.chaos",
        title="Random kills",
        about="Encoder actors, workers, a node and the driver killed at random during the whole main job on two Ray "
        "nodes and a bucket; every table is compared with an undisturbed run's byte for byte.",
        arguments="--rounds 10 --images 320",
        quick="--rounds 1 --images 160",
        takes_rounds=False,
        section=starting.CHAOS,
    ),
    Benchmark(
        name="gpu",
        module="benchmarks.gpu",
        title="On a GPU",
        about="The kernels without Ray: CLIP ViT-L/14 and DINOv2-L/14 with random weights, tars to vectors, the "
        "join, a training step; each is checked before it is timed, and shares are of the best matrix product "
        "in the same call.",
        quick="--scale smoke",
        lacks=lacks_gpu,
        takes_rounds=False,
        counts_with={"device": "cuda", "scale": "full"},
        parts=(*gpu.PARTS, gpu.BLOCKWISE),
        section=models.GPU,
    ),
    Benchmark(
        name="scaling",
        module="benchmarks.scaling",
        title="Scaling",
        about="One core and two, and the arithmetic for clusters that follows from unit costs.",
        arguments="--rounds 3",
        quick="--rounds 1 --num-images 10000",
        writes_section=True,
        section=Section(claims=(), tables=lambda figures: []),
    ),
)


def benchmarks() -> dict[str, Benchmark]:
    """Those whose module exists, by name, in the order of the page."""
    return {one.name: one for one in BENCHMARKS if one.is_there}
