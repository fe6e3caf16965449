"""img2dataset's writer and resizer, bound to our rules: members in the order of keys, equal tars for equal answers, bytes as they came."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from mmvp_ray.errors import ResourceError
from mmvp_ray.images.decode import decode, orientation
from mmvp_ray.images.limits import MAX_PIXELS, MIN_SIDE_PX
from mmvp_ray.images.reasons import Rejected
from mmvp_ray.images.sniff import EXTENSIONS, SUPPORTED, sniff
from mmvp_ray.ingest.fetch_reasons import FetchReason, message
from mmvp_ray.lean_import import lean_import
from mmvp_ray.retries import FULL_DISK

TAR_RECORD_BYTES = 10_240

Resized = tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]
"""What img2dataset's resizers give: bytes, width, height, original width, original height, error."""


def import_img2dataset() -> None:
    """Import what is used of img2dataset, without its asking the network for news.

    Raises:
        ResourceError: it cannot be imported.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for part in ("downloader", "resizer", "writer"):
                lean_import(f"img2dataset.{part}")
    except ImportError as error:
        raise ResourceError(
            f"expected img2dataset, found that it cannot be imported here ({error}); it needs Python 3.12 or older, or the package "
            f"standard-imghdr"
        ) from error


class CheckedResizer:
    """Looks at the header of each image, then hands it on to img2dataset's Resizer, which in mode "no" gives the bytes as they are.

    Args:
        inner: img2dataset's Resizer.
        keeps_bytes: True in mode "no", where the Resizer does not look at the image and so gives no sizes.
    """

    def __init__(self, inner: Callable[..., Resized], *, keeps_bytes: bool) -> None:
        self._inner = inner
        self._keeps_bytes = keeps_bytes

    def __call__(self, img_stream: Any, blurring_bbox_list: Any = None) -> Resized:
        """img2dataset's interface; the error is a message of fetch_reasons."""
        found = header_size_px(img_stream)
        if isinstance(found, str):
            return None, None, None, None, None, found
        img_stream.seek(0)
        if not self._keeps_bytes:
            upright = _upright(img_stream)
            if isinstance(upright, Rejected):
                return None, None, None, None, None, message(FetchReason.CORRUPT, f"{upright.reason}: {upright.detail}")
            img_stream = upright
        data, width_px, height_px, first_width_px, first_height_px, error = self._inner(img_stream, blurring_bbox_list)
        if error is not None:
            return None, None, None, None, None, message(FetchReason.CORRUPT, error)
        if self._keeps_bytes:
            width_px, height_px = first_width_px, first_height_px = found
        return data, width_px, height_px, first_width_px, first_height_px, None


def _upright(stream: Any) -> Any | Rejected:
    """An image that OpenCV reads as we do: a JPEG as it is unless it is to be turned, everything else decoded to plain pixels."""
    # OpenCV as img2dataset calls it leaves images on their side, and cuts deeper levels off at 255.
    data = stream.read()
    stream.seek(0)
    if sniff(data) == "JPEG":
        with Image.open(stream, formats=["JPEG"]) as image:
            is_upright = orientation(image) == 1
        stream.seek(0)
        if is_upright:
            return stream
    decoded = decode(data)
    if isinstance(decoded, Rejected):
        return decoded
    plain = io.BytesIO()
    decoded.image.save(plain, "PPM")
    plain.seek(0)
    return plain


def header_size_px(stream: Any) -> tuple[int, int] | str:
    """Width and height that the header of an encoded image claims, before orientation; else a message of fetch_reasons."""
    stream.seek(0)
    data = stream.read()
    name = sniff(data)
    if name not in SUPPORTED:
        return message(FetchReason.NOT_AN_IMAGE, f"begins with {data[:8].hex(' ')}")
    stream.seek(0)
    try:
        with Image.open(stream, formats=[SUPPORTED[name]]) as image:
            width_px, height_px = image.size
    except Image.DecompressionBombError as error:
        return message(FetchReason.TOO_MANY_PIXELS, f"{name}: {error}")
    # Pillow's plugins raise whatever their parsing runs into.
    except Exception as error:
        return message(FetchReason.CORRUPT, f"{name}: {type(error).__name__}: {error}")
    if width_px * height_px > MAX_PIXELS:
        return message(
            FetchReason.TOO_MANY_PIXELS, f"{name} of {width_px} x {height_px} pixels, more than {MAX_PIXELS}"
        )
    if min(width_px, height_px) < MIN_SIDE_PX:
        return message(FetchReason.CORRUPT, f"{name} of {width_px} x {height_px} pixels")
    return width_px, height_px


def writer_class(on_full: Callable[[], None]) -> type[Any]:
    """img2dataset's WebDatasetSampleWriter with members in the order of keys, extensions by content, and no times in the tar.

    Args:
        on_full: Called once, when the disk is full; what comes afterwards is not written, and `close` raises the disk's error.
    """
    from img2dataset.writer import WebDatasetSampleWriter, wds

    class KeyOrderWriter(WebDatasetSampleWriter):  # type: ignore[misc]
        """Writes samples as they come, and puts them in order when all are there."""

        def __init__(self, shard_id: int, output_folder: str, *rest: Any, **named: Any) -> None:
            super().__init__(shard_id, output_folder, *rest, **named)
            self._path = Path(self.tar_fd.name)
            self._places: dict[str, tuple[int, int]] = {}
            self._full: OSError | None = None
            # A whole number: for a fraction, tarfile puts a header of a kilobyte before each member.
            self.tarwriter = wds.TarWriter(self.tar_fd, mtime=0)

        def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
            """img2dataset's interface."""
            if self._full is not None:
                return
            if img_str is not None:
                self.encode_format = EXTENSIONS.get(sniff(img_str) or "", "jpg")
            begin = self.tarwriter.tarstream.offset
            try:
                super().write(img_str, key, caption, meta)
            except OSError as error:
                if error.errno not in FULL_DISK:
                    raise
                # img2dataset would print this and go on to the last URL. Left by force, its pool would wait for ever for the thread that feeds it.
                self._full = error
                on_full()
                return
            if img_str is not None:
                self._places[key] = (begin, self.tarwriter.tarstream.offset)

        def close(self) -> None:
            """Finish the table and the tar."""
            if self._full is not None:
                # While its file is open: tarfile would else do it later, and complain.
                with contextlib.suppress(OSError):
                    self.tarwriter.close()
                raise self._full
            super().close()
            self.tar_fd.close()
            put_in_order(self._path, self._places)

    return KeyOrderWriter


def put_in_order(tar: Path, places: dict[str, tuple[int, int]]) -> None:
    """Write a plain tar again with its samples in the order of their keys.

    Args:
        tar: A local file; replaced.
        places: The first byte and the end of each sample's members, side by side in the tar.
    """
    in_order = tar.with_name(tar.name + ".sorted")
    with tar.open("rb") as source, in_order.open("wb") as target:
        for key in sorted(places):
            begin, end = places[key]
            source.seek(begin)
            left = end - begin
            while left:
                chunk = source.read(min(left, 1 << 20))
                assert chunk, "the tar was closed before"
                target.write(chunk)
                left -= len(chunk)
        # A tar ends with two blocks of zeros, and is a whole number of records long.
        target.write(bytes(1_024))
        target.write(bytes(-target.tell() % TAR_RECORD_BYTES))
    shutil.move(in_order, tar)
