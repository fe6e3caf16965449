"""MineConfig: all that a mining run depends on; jobs/mine.py turns its fields into flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mmvp_ray import storage
from mmvp_ray.embed import EmbedConfig
from mmvp_ray.errors import ConfigError
from mmvp_ray.mine import RuleConfig, SelectConfig
from mmvp_ray.search import SearchConfig
from mmvp_ray.sources import parse_corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class MineConfig:
    """A mining run: which images, which encoders, which rule, and where the results go."""

    corpus: tuple[str, ...] = ("miniature=miniature:4096",)
    """NAME=PATH_OR_URL of images: a folder, globs or {a..b} braces of tars or Parquet, any fsspec URL. Repeat it for several corpora."""
    near: tuple[str, ...] = ("miniature:clip",)
    """Encoder whose near pairs are looked for, such as open_clip:ViT-L-14/openai or a local directory (docs/encoders.md). Repeat it to compare several; the selection is the first one's."""
    far: tuple[str, ...] = ("miniature:dino",)
    """Encoder that must tell the two images apart, such as hf:facebook/dinov2-large. Repeat it to compare several; hf:./encoders/* (open_clip:, timm:, any URL) means every directory there, new ones too."""
    rule: RuleConfig = field(default_factory=RuleConfig)
    """When a pair counts."""
    collapse: Literal["none", "near"] = "none"
    """near: join one representative of each group of near-copies (near >= 0.985 and first far >= 0.95) instead of every image."""
    select: int = 150
    """Pairs in pairs.parquet and in the report; the paper's benchmark has 150."""
    selection: SelectConfig = field(default_factory=SelectConfig)
    """How they are chosen."""
    out: str | None = None
    """Folder of the results (path or URL); runs/<name of the recipe> unless given."""
    runs: str | None = None
    """Folder (path or URL) of dated runs, in place of --out: a new run in RUNS/<time>, compared with the latest, which it then becomes (RUNS/latest.json). Only one at a time on a store (docs/remining.md)."""
    store: str | None = None
    """Folder of embeddings and near pairs, shared by runs; OUT/store unless given, RUNS/store with --runs."""
    name: str | None = None
    """Name of the recipe."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How near pairs are looked for."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where encoders and the join run; auto takes GPUs if there are any."""
    dtype: Literal["float16", "bfloat16", "float32"] | None = None
    """Arithmetic of the encoders; float16 on GPUs and float32 on CPUs unless given."""
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    """Batches, threads and actors."""
    max_images: int | None = None
    """Use at most so many images of each corpus, spread evenly over its shards."""
    min_aesthetic: float | None = None
    """Leave out pairs of images with a lower aesthetic score, which jobs/ingest.py score has stored (of the range 1 to 10)."""
    max_reject_fraction: float = 0.05
    """Fail when a larger share of the images cannot be used."""
    address: str | None = None
    """A running Ray cluster to use (auto, host:port); a cluster of its own on this machine unless given or RAY_ADDRESS is set."""
    wait_for_gpus: float = 0.0
    """With --device cuda on a cluster that grows by itself: seconds to wait for its first GPU."""
    trust_remote_code: bool = False
    """Let code that comes with Hugging Face weights run."""
    compare_with: str | None = None
    """Folder of an earlier run: also write what was fixed, is still blind and is new since then (OUT/diff.html). With --runs the latest one unless given."""
    takedown: str | None = None
    """File (path or URL) of image ids (32 hex digits) or URLs, one a line, # begins a comment: removed from every table of the store for good, before the run."""
    plan: bool = False
    """Stop after the preflight: check everything, print what is to be done, do nothing."""
    plan_cluster: str | None = None
    """Also print the hours on another cluster: NUMxGPU, NUMxCPU or both with a comma, such as 8xH100 or 8xL40S,128xCPU."""

    def check(self) -> None:
        """Raise ConfigError for a value out of range, before anything is opened."""
        if not self.corpus:
            raise ConfigError(
                "expected at least one --corpus NAME=PATH_OR_URL, found none; for example --corpus photos=./photos"
            )
        names = [parse_corpus(text)[0] for text in self.corpus]
        if len(set(names)) < len(names):
            raise ConfigError(f"expected different names of corpora, found {', '.join(names)} in --corpus; rename one")
        for flag, encoders in (("--near", self.near), ("--far", self.far)):
            if not encoders:
                raise ConfigError(f"expected at least one encoder, found none in {flag}; see docs/encoders.md")
            if len(set(encoders)) < len(encoders):
                raise ConfigError(f"expected different encoders, found {', '.join(encoders)} in {flag}; name each once")
        if not self.combinations:
            raise ConfigError(
                f"expected two different encoders, found {self.near[0]!r} in both --near and --far; choose another --far"
            )
        if self.out is not None and self.runs is not None:
            raise ConfigError(
                f"expected --out or --runs, found both ({self.out} and {self.runs}); with --runs each run has a dated folder there"
            )
        if self.select < 1:
            raise ConfigError(
                f"expected at least 1, found {self.select} in --select; the paper's benchmark has 150 pairs"
            )
        if self.max_images is not None and self.max_images < 1:
            raise ConfigError(f"expected at least 1, found {self.max_images} in --max-images; give a positive number")
        if not 0.0 <= self.wait_for_gpus < float("inf"):
            raise ConfigError(f"expected seconds, found {self.wait_for_gpus} in --wait-for-gpus; 0 does not wait")
        if self.min_aesthetic is not None and not -100.0 < self.min_aesthetic < 100.0:
            raise ConfigError(
                f"expected a score, about 1 to 10, found {self.min_aesthetic} in --min-aesthetic; LAION-Aesthetics begins at 4.5"
            )
        if not 0.0 <= self.max_reject_fraction <= 1.0:
            raise ConfigError(
                f"expected a fraction between 0 and 1, found {self.max_reject_fraction} in --max-reject-fraction; the default is 0.05"
            )
        self.rule.check()
        self.search.check()
        self.selection.check()
        self.embed.check()

    def __post_init__(self) -> None:
        """Take one name where a tuple of names is expected."""
        for name in ("near", "far", "corpus"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))

    @property
    def combinations(self) -> list[tuple[str, str]]:
        """Every near encoder with every far one that is another, by name, the first near one's first."""
        return [(near, far) for near in self.near for far in self.far if near != far]

    @property
    def recipe(self) -> str:
        """Name of the recipe: the one given, else the names of the corpora."""
        return self.name or "-".join(parse_corpus(text)[0] for text in self.corpus)

    @property
    def out_url(self) -> str:
        """Folder of the results, absolute; with --runs that of a dated run, which the job fills in (dated_runs.py)."""
        return storage.normalise(self.out or f"runs/{self.recipe}")

    @property
    def store_url(self) -> str:
        """Folder of the store, absolute."""
        if self.store:
            return storage.normalise(self.store)
        return storage.join(self.out_url if self.runs is None else storage.normalise(self.runs), "store")
