"""How large an encoded or decoded image may be: checked before anything is allocated for its pixels."""

from __future__ import annotations

from typing import Final

MAX_ENCODED_BYTES: Final = 64 * 2**20
"""Longest encoded image that is decoded. A webdataset of photos has members of 0.1 to 10 MB."""

MAX_PIXELS: Final = 2**30 // 4 // 3
"""Most pixels (width x height) that the header of an image may claim: 89,478,485, a quarter of a GiB as RGB. It is the
number from which Pillow 13 warns of a decompression bomb (it raises from twice as many)."""

MIN_SIDE_PX: Final = 1
"""Shortest side of an image that is decoded."""

MAX_RESIZED_PX: Final = 2**26
"""Most pixels of an image that is resized whole before a centre crop; beyond (sides more than about 1300 times apart at
224 px) only the crop window is computed."""

MAX_DECODER_MEMORY_BYTES: Final = 4 * 2**30
"""Most address space of the child process that decodes in isolation. The largest image takes several copies of 4 bytes
per pixel (360 MB each) on its way from a rare mode to RGB."""

MAX_DETAIL_CHARS: Final = 300
"""Longest detail of a rejected record."""
