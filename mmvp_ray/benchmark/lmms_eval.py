"""Export for lmms-eval: a folder that `lmms_eval --include_path DIR --tasks NAME` runs as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import Benchmark
from mmvp_ray.benchmark.embedded import write_embedded
from mmvp_ray.benchmark.image_copies import ImageMode
from mmvp_ray.benchmark.items import pairs_of
from mmvp_ray.benchmark.mmvp import refuse_to_overwrite
from mmvp_ray.errors import ConfigError

UTILS_FILE: Final = "utils.py"
UTILS_SOURCE: Final = Path(__file__).with_name("exported") / "lmms_eval_utils.py"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

_TASK = """# Written by mmvp-ray. Run: lmms_eval --include_path THIS_FOLDER --tasks {task} --model ...
# {num_questions} questions in {num_pairs} pairs, answer key: {key}, fingerprint {fingerprint}
task: {task}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: data/{task}.parquet
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: !function utils.doc_to_target
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 64
  temperature: 0
  do_sample: false
metric_list:
  - metric: pair_accuracy
    aggregation: !function utils.aggregate_pairs
    higher_is_better: true
  - metric: question_accuracy
    aggregation: !function utils.aggregate_questions
    higher_is_better: true
  - metric: unparsed
    aggregation: !function utils.aggregate_unparsed
    higher_is_better: false
  - metric: failed_requests
    aggregation: !function utils.aggregate_failed
    higher_is_better: false
cluster_key: pair_id
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: "\\nAnswer with the option's letter from the given choices directly."
metadata:
  version: 1.0
  fingerprint: {fingerprint}
  answer_key: {key}
"""


def export_lmms_eval(url: str, benchmark: Benchmark, *, task: str, images: ImageMode = "identical") -> None:
    """Write DIR/<task>.yaml, DIR/utils.py and DIR/data/<task>.parquet; several tasks may share a folder.

    The path of the data is relative to the task file, as lmms-eval 0.7.2 resolves it: the folder can be moved.

    Args:
        url: A folder without such a task.
        benchmark: Of questions.
        task: The task's name: letters, digits, _ and -.
        images: "identical" or "reencoded".

    Raises:
        ConfigError: statements, a name that is none, or a task of this name is there. DataError: a missing or broken image.
    """
    check_name(task, "task")
    refuse_to_overwrite(url, f"{task}.yaml")
    pairs = list(pairs_of(benchmark.questions).values())
    write_embedded(storage.join(url, "data", f"{task}.parquet"), benchmark, pairs, images)
    storage.write_bytes(storage.join(url, UTILS_FILE), UTILS_SOURCE.read_bytes())
    text = _TASK.format(
        task=task,
        num_questions=len(benchmark.items),
        num_pairs=len(pairs),
        key=json.dumps(benchmark.key),
        fingerprint=benchmark.fingerprint,
    )
    storage.write_bytes(storage.join(url, f"{task}.yaml"), text.encode())


def check_name(name: str, what: str) -> None:
    """Raise ConfigError unless `name` is a plain name, which file systems, YAML and command lines take as it is."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"expected a {what} name of letters, digits, _ and -, at most 64, found {name[:80]!r}")
