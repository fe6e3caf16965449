"""open_benchmark: whatever layout a folder has, here or in a bucket, it becomes a Benchmark."""

from __future__ import annotations

from mmvp_ray import storage
from mmvp_ray.benchmark.benchmark import AS_FOUND, Benchmark, collect
from mmvp_ray.benchmark.items import Question, Statement
from mmvp_ray.benchmark.keys import note_published, with_key
from mmvp_ray.benchmark.mmvp import FOLDER_SPELLINGS as MMVP_FOLDERS
from mmvp_ray.benchmark.mmvp import QUESTIONS_FILE, read_mmvp
from mmvp_ray.benchmark.mmvp_vlm import FOLDER_SPELLINGS as MMVP_VLM_FOLDERS
from mmvp_ray.benchmark.mmvp_vlm import read_mmvp_vlm
from mmvp_ray.benchmark.table import QUESTIONS_TABLE, STATEMENTS_TABLE, read_table
from mmvp_ray.errors import ConfigError


def detect_layout(url: str) -> str:
    """The layout of the benchmark in a folder: "table", "mmvp" or "mmvp_vlm".

    Raises:
        ConfigError: none of them, or several; says what was looked for.
    """
    files = set(storage.list_names(url))
    folders = {name.casefold() for name in storage.list_folders(url)}
    found = ["table" for name in (QUESTIONS_TABLE, STATEMENTS_TABLE) if name in files]
    if QUESTIONS_FILE in files:
        if folders & {name.casefold() for name in MMVP_FOLDERS}:
            found.append("mmvp")
        if folders & {name.casefold() for name in MMVP_VLM_FOLDERS}:
            found.append("mmvp_vlm")
    if len(found) == 1:
        return found[0]
    seen = ", ".join(sorted(files | {f"{name}/" for name in storage.list_folders(url)})[:8]) or "nothing"
    raise ConfigError(
        f"expected one benchmark in {url}: {QUESTIONS_TABLE} or {STATEMENTS_TABLE} (ours), {QUESTIONS_FILE} with '{MMVP_FOLDERS[0]}' "
        f"(MMVP), or {QUESTIONS_FILE} with '{MMVP_VLM_FOLDERS[0]}' (MMVP-VLM); found {f'{len(found)} of them' if found else 'none'} among: {seen}"
    )


def open_benchmark(url: str, *, key: str = AS_FOUND, name: str | None = None) -> Benchmark:
    """Read a benchmark in our layout, MMVP's or MMVP-VLM's; every image is read once, for the fingerprint.

    Args:
        url: The folder: a path or any fsspec URL.
        key: "as-found", "original" or "corrected" (the published MMVP alone), or an errata file (.yaml).
        name: Name for tables; None takes the one that the files have, or the folder's.

    Raises:
        ConfigError: no known layout (says what was looked for), or a key that this benchmark does not have.
        DataError: a file, a row or an image is missing or broken.
    """
    url = storage.normalise(url)
    layout = detect_layout(url)
    folder_name = url.rsplit("/", 1)[-1]
    if layout == "table":
        content = read_table(url)
        found = collect(
            content.items,
            name=name or content.name or folder_name,
            layout=layout,
            url=url,
            key=content.key,
            image_sha256=content.image_sha256,
        )
    else:
        items: list[Question] | list[Statement]
        items, notes = read_mmvp(url) if layout == "mmvp" else read_mmvp_vlm(url)
        found = collect(items, name=name or folder_name, layout=layout, url=url, notes=notes)
    if found.kind == "statements":
        if key != AS_FOUND:
            raise ConfigError(f"expected the key {AS_FOUND} for a benchmark of statements, found {key!r} for {url}")
        return found
    return note_published(found) if key == AS_FOUND else with_key(found, key)
