"""Tell the format of a file from its first bytes, because its name may be wrong.

Worker processes import this module, so it does not import torch, which takes seconds.
"""

from __future__ import annotations

import codecs

IMAGES = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Supported image formats, by Pillow's names."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".jif", ".pjpeg", ".pjp"),
    *(".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
)
SUFFIXES_TEXT = ".jpg, .png, .webp, .bmp, .tif or .gif"

PNG_START = b"\x89PNG\r\n\x1a\n"

_IMAGE_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    PNG_START: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_BMP_HEADERS = {length.to_bytes(4, "little") for length in (12, 40, 52, 56, 64, 108, 124)}

UNKNOWN = "of an unknown kind"
_TEXT = "a text file"
_PAGE = "an HTML page instead of an image: download it again"
_ZEROS = "full of zero bytes, as after an interrupted copy or on a full disk"
_HEIF = "a HEIC or AVIF image: convert it to JPEG or PNG"
_VIDEO = "a video"
_STARTS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"PK\x03\x04": "a zip archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file: run git lfs pull",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image: convert it to JPEG or PNG",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image: convert it to JPEG or PNG",
    b"\0\0\0\x0cJXL ": "a JPEG XL image: convert it to JPEG or PNG",
    b"\xff\x0a": "a JPEG XL image: convert it to JPEG or PNG",
    b"8BPS": "a Photoshop document: convert it to JPEG or PNG",
    b"%PDF": "a PDF document: convert it to JPEG or PNG",
    b"\x93NUMPY": "a NumPy array",
    b"\x1aE\xdf\xa3": _VIDEO,
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<svg": "an SVG drawing: convert it to JPEG or PNG",
    b"<?xml": "an XML file",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

PACKED = {
    "a gzip archive": (".gz", "gunzip"),
    "a bzip2 archive": (".bz2", "bunzip2"),
    "an xz archive": (".xz", "unxz"),
    "a Zstandard archive": (".zst", "unzstd"),
}
"""Map formats that compress one file, possibly a tar, to their suffix and the command that decompresses."""

NOT_READ = (*dict.fromkeys(_STARTS.values()), _HEIF, _ZEROS, _TEXT, UNKNOWN)
"""Possible results of :func:`not_read`."""


def image_kind(content: bytes) -> str | None:
    """Return the format of an image, one of ``IMAGES``, or None if the file is no such image."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[:2] == b"BM" and content[14:18] in _BMP_HEADERS:
        return "BMP"
    return next((kind for start, kind in _IMAGE_STARTS.items() if content.startswith(start)), None)


def not_read(content: bytes) -> str:
    """Describe a file that is not an image of ``IMAGES``: one of ``NOT_READ``, to follow the word "is".

    Args:
        content: the file, not empty; its first 512 bytes suffice unless it starts with zeros.
    """
    first = content[:512]
    if first[4:8] == b"ftyp":
        return _HEIF if first[8:12] in _HEIF_BRANDS else _VIDEO
    for start, kind in _STARTS.items():
        found = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower() if start.startswith(b"<") else first
        if found.startswith(start):
            return kind
    if content.count(0) == len(content):
        return _ZEROS
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(first)  # the last letter may be cut off
    except UnicodeDecodeError:
        return UNKNOWN
    return _TEXT if all(letter.isprintable() or letter.isspace() for letter in text) else UNKNOWN
