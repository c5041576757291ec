"""Images of every kind that a folder may hold, and folders and tar shards of them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin

Pixels = npt.NDArray[np.uint8]

PNG_START = b"\x89PNG\r\n\x1a\n"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def pixels(seed: int, height: int = 8, width: int = 8) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Pixels | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """What Pillow saves: a PNG, JPEG or other file."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def save(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    return PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def deep_png(values: npt.NDArray[np.uint16], colour: int) -> bytes:
    """A PNG of 16 bits per channel; Pillow writes none in colour."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_header(width, height, 16, colour) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def good_images() -> dict[str, tuple[bytes, tuple[int, int], bool]]:
    """Name -> file, (height, width) when upright, and whether DALI decodes it to other pixels than Pillow."""
    colour = Image.fromarray(np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8)))  # JPEG keeps flat areas
    upright, turned = (24, 40), (40, 24)
    deep = np.random.default_rng(1).integers(0, 65536, (6, 7, 4), dtype=np.uint16)
    png = encoded(colour)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Created with a camera")
    in_xmp = PngImagePlugin.PngInfo()
    in_xmp.add_itxt("XML:com.adobe.xmp", XMP.decode())
    in_text = PngImagePlugin.PngInfo()
    in_text.add_text("Raw profile type exif", f"\nexif\n{len(exif(6)):8d}\n{exif(6).hex()}\n", zip=True)
    two_colours = Image.fromarray(np.eye(8, dtype=np.uint8)).convert("P")
    end = len(png) - 12
    return {
        "rgb.png": (png, upright, False),
        "rgb.jpg": (encoded(colour, "JPEG"), upright, False),
        "progressive.jpg": (encoded(colour, "JPEG", progressive=True), upright, False),
        "no-subsampling.jpg": (encoded(colour, "JPEG", subsampling=0, quality=95), upright, False),
        "stored-as-rgb.jpg": (encoded(colour, "JPEG", keep_rgb=True), upright, False),
        "grey.jpg": (encoded(colour.convert("L"), "JPEG"), upright, False),
        "cmyk.jpg": (encoded(colour.convert("CMYK"), "JPEG"), upright, True),
        "mpo.jpg": (encoded(colour, "MPO", save_all=True, append_images=[colour]), upright, False),
        "with-video.jpg": (encoded(colour, "JPEG") + bytes(1 << 17), upright, False),
        "thumbnail.jpg": (encoded(colour, "JPEG", exif=with_thumbnail()), upright, False),
        "grey.png": (encoded(colour.convert("L")), upright, False),
        "one-bit.png": (encoded(colour.convert("1")), upright, False),
        "palette.png": (encoded(colour.convert("P")), upright, False),
        "text.png": (encoded(colour, pnginfo=text), upright, False),
        "animated.png": (encoded(colour, save_all=True, append_images=[colour.rotate(180)]), upright, False),
        "turned-180.jpg": (encoded(colour, "JPEG", exif=exif(3)), upright, False),
        "turned.jpg": (encoded(colour, "JPEG", exif=exif(6)), turned, False),
        "mirrored.jpg": (encoded(colour, "JPEG", exif=exif(7)), turned, False),
        "turned-by-nine.jpg": (encoded(colour, "JPEG", exif=exif(9)), upright, False),
        "turned.png": (encoded(colour, exif=exif(8)), turned, True),
        "turned-at-the-end.png": (png[:end] + chunk(b"eXIf", exif(6)[6:]) + png[end:], turned, True),
        "turned-by-xmp.jpg": (encoded(colour, "JPEG", xmp=XMP), turned, True),
        "turned-by-xmp.png": (encoded(colour, pnginfo=in_xmp), turned, True),
        "turned-by-text.png": (encoded(colour, pnginfo=in_text), turned, True),
        "rgba.png": (encoded(np.concatenate([pixels(2), pixels(3)[:, :, :1]], axis=2)), (8, 8), True),
        "grey-alpha.png": (encoded(colour.convert("LA")), upright, True),
        "transparent-entry.png": (encoded(two_colours, transparency=0), (8, 8), True),
        "transparent-grey.png": (encoded(colour.convert("L"), transparency=7), upright, True),
        "deep-rgb.png": (deep_png(deep[:, :, :3], 2), (6, 7), True),
        "deep-rgba.png": (deep_png(deep, 6), (6, 7), True),
        "deep-grey-alpha.png": (deep_png(deep[:, :, :2], 4), (6, 7), True),
        "one-pixel.png": (encoded(pixels(0, 1, 1)), (1, 1), False),
        "wide.jpg": (encoded(pixels(0, 1, 300), "JPEG"), (1, 300), False),
    }


def with_thumbnail() -> bytes:
    """EXIF data that hold a JPEG of their own, as cameras write it."""
    tags = Image.Exif()
    tags[ExifTags.Base.ImageDescription] = encoded(pixels(1), "JPEG").decode("latin-1")
    return tags.tobytes()


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name -> file, and what is said of it."""
    colour = Image.fromarray(np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8)))
    large = Image.fromarray(pixels(4, 64, 64))  # also as a JPEG larger than its header
    png, jpeg = encoded(colour), encoded(large, "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    no_pixels = png_header(0, 5) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    bomb = png_header(20_000, 20_000) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    long = png_header(40_000, 1) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    deep = np.random.default_rng(1).integers(0, 65536, (6, 7, 1), dtype=np.uint16)
    return {
        "empty.jpg": (b"", "is empty"),
        "gif.jpg": (encoded(colour, "GIF"), "is neither JPEG nor PNG"),
        "text.png": (b"<html>not found</html>", "is neither JPEG nor PNG"),
        "header-only.jpg": (jpeg[:20], "has a damaged header"),
        "no-header.jpg": (jpeg[:3] + b"\0" * 200, "has a damaged header"),
        "no-header.png": (PNG_START, "has a damaged header"),
        "spoilt-header.png": (png[:20] + b"\xff" + png[21:], "has a damaged header"),
        "no-pixels.png": (no_pixels, "has a damaged header, one of no pixels"),
        "bomb.png": (bomb, "is a decompression bomb"),
        "long.png": (long, "has more than 32767 pixels a side"),
        "no-end.jpg": (jpeg[:-2], "ends early"),
        "half.jpg": (jpeg[: 3 * len(jpeg) // 4], "ends early"),
        "half-with-thumbnail.jpg": (
            encoded(large, "JPEG", exif=with_thumbnail())[:-200],
            "ends early",
        ),
        "half-of-several.jpg": (
            encoded(large, "MPO", save_all=True, append_images=[colour], exif=with_thumbnail())[:2000],
            "ends early",
        ),
        "half-and-zeros.jpg": (jpeg[: len(jpeg) // 2] + bytes(1 << 17), "ends early"),
        "half.png": (png[: len(png) // 2], "is damaged: a chunk"),
        "no-end.png": (png[:-12], "is damaged: a chunk"),
        "flipped.png": (bytes(flipped), "is damaged: a chunk"),
        "deep-grey.png": (deep_png(deep, 0), "is a grey image of 16 bits"),
    }


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    """An uncompressed tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_jpegs(folder: Path) -> Path:
    """A folder data set of 40 training and 12 test images of 16x16 pixels, in two classes."""
    for half, count in (("train", 20), ("test", 6)):
        for place, name in enumerate(("dark", "light")):
            for number in range(count):
                path = folder / half / name / f"{number:02d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(pixels(number, 16, 16) // 2 + 120 * place, "JPEG"))
    return folder
