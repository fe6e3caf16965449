"""The format of an encoded image by its first bytes, so that Pillow only sees what one chosen decoder is for.

Decoded are the formats that photo corpora hold and whose decoders run inside the process: JPEG (with MPO), PNG, WebP,
GIF, BMP, TIFF, AVIF, JPEG 2000 and PNM. Left out on purpose: EPS and the like (they start external programs), PSD, ICO
and other containers that no photo corpus needs, and TGA, which has no signature, so that garbage would decode as a
picture.
"""

from __future__ import annotations

from typing import Final

SUPPORTED: Final = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WebP": "WEBP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "AVIF": "AVIF",
    "JPEG 2000": "JPEG2000",
    "PNM": "PPM",
}
"""Name of each decoded format -> Pillow's name for it."""

EXTENSIONS: Final = {
    "JPEG": "jpg",
    "PNG": "png",
    "WebP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "AVIF": "avif",
    "JPEG 2000": "jp2",
    "PNM": "ppm",
}
"""Name of each decoded format -> extension of files and members, all of them known to sources/webdataset.py."""

_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"icns", "ICNS"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"AT&TFORM", "DjVu"),
    (b"gimp xcf", "XCF"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x01\xda", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
)
_AVIF_BRANDS: Final = (b"avif", b"avis")
_HEIF_BRANDS: Final = (
    b"heic",
    b"heix",
    b"hevc",
    b"hevx",
    b"heim",
    b"heis",
    b"mif1",
    b"msf1",
)
_TGA_FOOTER: Final = b"TRUEVISION-XFILE.\x00"


def sniff(data: bytes) -> str | None:
    """Return the name of the format that data begins like, decoded here or not; None if it is like none.

    Args:
        data: the whole encoded image (TGA is known by its end only).

    Returns:
        A key of SUPPORTED, the name of another known format, or None.
    """
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    # An uncompressed TGA without footer begins alike, but has a zero where a cursor file counts its images.
    if data.startswith(b"\x00\x00\x02\x00") and data[4:6] not in (b"", b"\x00\x00"):
        return "CUR"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3] in b" \t\r\n#" and len(data) > 2:
        return "PNM"
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in head):
        return "SVG"
    if data.endswith(_TGA_FOOTER):
        return "TGA"
    return None


def is_cut(data: bytes, name: str) -> bool:
    """Tell whether an image that did not decode ends before its format's end mark.

    Args:
        data: the encoded image.
        name: its format, as sniff gives it.

    Returns:
        True where the end mark or the announced length is missing; False where it is there or the format has none.
    """
    if name == "JPEG":
        return b"\xff\xd9" not in data
    if name == "PNG":
        return b"IEND" not in data
    if name == "GIF":
        return not data.rstrip(b"\x00").endswith(b";")
    if name == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    return False


def _sniff_isobmff(data: bytes) -> str:
    """AVIF and HEIC share the container and the brand mif1: the list of compatible brands tells them apart."""
    box_bytes = min(int.from_bytes(data[:4], "big"), 256)
    brands = [
        data[8:12],
        *(data[start : start + 4] for start in range(16, box_bytes, 4)),
    ]
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    return "HEIC" if any(brand in _HEIF_BRANDS for brand in brands) else "MP4 or another ISO media file"
