"""What ImageNet's images are called: class names by WordNet id, and the ground truth of the validation images."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvp_ray import storage
from mmvp_ray.errors import ConfigError, DataError
from mmvp_ray.sources.fields import text_of, wnid_of

MAX_LIST_BYTES = 256 << 20
"""Longest list or development kit; the kit has 2.5 MB, its lists less than 3 MB."""
FROM_TIMM = "timm"
"""In place of a file of class names: the names that come with the installed timm (Apache-2.0)."""
_TIMM_WNIDS, _TIMM_NAMES = "timm/data/_info/imagenet_synsets.txt", "timm/data/_info/imagenet_synset_to_lemma.txt"
_META, _GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = "ILSVRC2012_val_{:08d}"


@dataclass(frozen=True, slots=True)
class ClassName:
    """The readable name of a class, and its index in the order in which models count the classes (sorted WordNet ids, from 0)."""

    name: str
    index: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Classes by WordNet id, and WordNet ids of validation images by the stem of their name."""

    classes: Mapping[str, ClassName] = field(default_factory=dict)
    wnids: Mapping[str, str] = field(default_factory=dict)

    def record(self, wnid: str | None) -> dict[str, Any]:
        """What the JSON file beside an image says of its class: wnid, label and class_index; without a name the wnid is the label."""
        if wnid is None:
            return {}
        known = self.classes.get(wnid)
        return {
            "wnid": wnid,
            "label": wnid if known is None else known.name,
            "class_index": None if known is None else known.index,
        }

    def wnid_named(self, name: str | None) -> str | None:
        """The one class of that name; None if there is none, or several (ImageNet has two cranes)."""
        found = [wnid for wnid, known in self.classes.items() if known.name == name]
        return found[0] if len(found) == 1 else None


def read_labels(*, class_names: str | None, devkit: str | None, val_labels: str | None) -> Labels:
    """Read what the user names; a file of class names goes before the development kit's.

    Args:
        class_names: LOC_synset_mapping.txt (`n01440764 tench, Tinca tinca` in a line), imagenet_class_index.json
            (`{"0": ["n01440764", "tench"], ...}`), or "timm".
        devkit: ILSVRC2012_devkit_t12.tar.gz or the folder that it was unpacked into.
        val_labels: A text of `name wnid` lines; commas may stand for the space and more may follow, as in LOC_val_solution.csv.

    Raises:
        ConfigError: a file is not what it should be.
    """
    classes: dict[str, ClassName] = {}
    wnids: dict[str, str] = {}
    if devkit is not None:
        classes, wnids = _read_devkit(devkit)
    if class_names == FROM_TIMM:
        classes = _timm_classes()
    elif class_names is not None:
        classes = read_class_names(class_names)
    if val_labels is not None:
        wnids = _read_val_labels(val_labels)
    return Labels(classes=classes, wnids=wnids)


def read_class_names(url: str) -> dict[str, ClassName]:
    """Class names by WordNet id.

    Raises:
        ConfigError: the file holds neither of the two formats.
    """
    text = _text(url, "--class-names")
    pairs: list[tuple[str, Any, int]]
    if text.lstrip().startswith("{"):
        try:
            pairs = [(wnid, name, int(index)) for index, (wnid, name) in json.loads(text).items()]
        except (ValueError, TypeError, RecursionError) as error:
            raise _no_names(url, f"other JSON ({error})") from error
    else:
        lines = [line for line in text.splitlines() if line.strip()]
        pairs = [
            (wnid, name, index) for index, line in enumerate(lines) for wnid, _, name in [line.strip().partition(" ")]
        ]
    for wnid, name, _ in pairs:
        if wnid_of(str(wnid)) != wnid or not isinstance(name, str) or not name.strip():
            raise _no_names(url, repr(f"{wnid} {name}"[:80]))
    twice = next((wnid for wnid, count in Counter(wnid for wnid, _, _ in pairs).items() if count > 1), None)
    if not pairs or twice is not None:
        raise _no_names(url, f"{twice} twice" if twice else "nothing")
    return {wnid: ClassName(_clean(name), index) for wnid, name, index in pairs}


def _no_names(url: str, found: str) -> ConfigError:
    return ConfigError(
        f'expected lines such as \'n01440764 tench, Tinca tinca\' or JSON such as {{"0": ["n01440764", "tench"]}}, found {found} '
        f"in {url}; check --class-names"
    )


def _timm_classes() -> dict[str, ClassName]:
    # Its data files alone: timm itself is imported by encoders only.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, OSError):
        files = importlib.metadata.distribution("timm")
        wnids, lines = (
            Path(str(files.locate_file(path))).read_text(encoding="utf-8") for path in (_TIMM_WNIDS, _TIMM_NAMES)
        )
        names = dict(line.split("\t", 1) for line in lines.splitlines() if "\t" in line)
        return {
            wnid: ClassName(_clean(names[wnid]), index) for index, wnid in enumerate(wnids.split()) if wnid in names
        }
    raise ConfigError(
        "expected class names in the installed timm, found none; give LOC_synset_mapping.txt or imagenet_class_index.json to --class-names"
    )


def _read_val_labels(url: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(_text(url, "--val-labels").splitlines(), start=1):
        words = re.split(r"[\s,]+", line.strip())
        if words == [""] or (number == 1 and words[0] == "ImageId"):
            continue
        if len(words) < 2 or wnid_of(words[1]) != words[1]:
            raise ConfigError(
                f"expected a name and a WordNet id such as 'ILSVRC2012_val_00000001 n01751748', found {line[:80]!r} in line {number} of {url}; "
                f"check --val-labels"
            )
        found[val_stem(words[0])] = words[1]
    return found


def val_stem(name: str) -> str:
    """The name of an image without folders and extension, by which ground truth is looked up."""
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


def _read_devkit(url: str) -> tuple[dict[str, ClassName], dict[str, str]]:
    meta, truth = _devkit_files(url)
    ids = _synsets(meta, url)
    wnids = sorted(wnid for wnid, _ in ids.values())
    names = {wnid: ClassName(_clean(words), wnids.index(wnid)) for wnid, words in ids.values()}
    found: dict[str, str] = {}
    for number, line in enumerate(truth.decode("ascii", errors="replace").split(), start=1):
        if re.fullmatch(r"\d{1,9}", line, re.ASCII) is None or int(line) not in ids:
            raise ConfigError(
                f"expected ILSVRC2012 ids of the {len(ids)} classes in meta.mat, found {line[:40]!r} in line {number} of the "
                f"ground truth in {url}; check --devkit"
            )
        found[_VAL_NAME.format(number)] = ids[int(line)][0]
    return names, found


def _devkit_files(url: str) -> tuple[bytes, bytes]:
    if storage.is_folder(url):
        return _bytes(storage.join(url, _META), "--devkit"), _bytes(storage.join(url, _GROUND_TRUTH), "--devkit")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_bytes(url, "--devkit")), mode="r|*") as tar:
            for info in tar:
                end = next((end for end in (_META, _GROUND_TRUTH) if f"/{info.name}".endswith(f"/{end}")), None)
                file = tar.extractfile(info) if end is not None and info.isreg() else None
                if end is not None and file is not None:
                    found[end] = file.read(MAX_LIST_BYTES)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise _no_devkit(url, f"no tar ({error})") from error
    if len(found) < 2:
        raise _no_devkit(url, " and ".join(found) or "neither")
    return found[_META], found[_GROUND_TRUTH]


def _no_devkit(url: str, found: str) -> ConfigError:
    return ConfigError(
        f"expected {_META} and {_GROUND_TRUTH} in {url}, found {found}; give ILSVRC2012_devkit_t12.tar.gz or the folder it unpacks to"
    )


def _synsets(meta: bytes, url: str) -> dict[int, tuple[str, str]]:
    """(wnid, words) of the classes by ILSVRC2012 id, from the kit's table of synsets; those with children are no classes."""
    import scipy.io

    try:
        table = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
        columns: Iterable[tuple[Any, ...]] = zip(
            *(table[name] for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")), strict=True
        )
        found = {
            int(number): (str(wnid), str(words)) for number, wnid, words, children in columns if int(children) == 0
        }
    except Exception as error:
        # scipy says in many ways that a file is none of MATLAB's.
        raise _no_devkit(
            url, f"a meta.mat that cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from error
    if not found or any(wnid_of(wnid) != wnid for wnid, _ in found.values()):
        raise _no_devkit(url, "a meta.mat without WordNet ids")
    return found


def _text(url: str, flag: str) -> str:
    try:
        return _bytes(url, flag).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"expected a UTF-8 text, found other bytes in {url} ({error}); check {flag}") from error


def _bytes(url: str, flag: str) -> bytes:
    try:
        data = storage.read_bytes(url, start=0, end=MAX_LIST_BYTES + 1)
    except DataError as error:
        raise ConfigError(f"expected a file at {url}, found none; check {flag} ({error})") from error
    if len(data) > MAX_LIST_BYTES:
        raise ConfigError(f"expected at most {MAX_LIST_BYTES} bytes, found more in {url}; check {flag}")
    return data


def _clean(name: str) -> str:
    return " ".join(text_of(name.encode("utf-8", errors="replace")).split())
