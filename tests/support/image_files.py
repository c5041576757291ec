"""Images of every kind that a folder may hold, and folders and tar shards of them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin

from rotnet_fast.data.scan import Scan, Scanner
from rotnet_fast.data.source import ImageSource

Pixels = npt.NDArray[np.uint8]

PNG_START = b"\x89PNG\r\n\x1a\n"


def scan_images(source: ImageSource, places: list[Path], check: str = "structure") -> Scan:
    """Check all images of a source that an earlier run has not checked."""
    scanner = Scanner(source, places, progress=False, check=check)
    scanner.check(np.arange(len(source)))
    return scanner.scan


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
        "restarts.jpg": (encoded(colour, "JPEG", restart_marker_blocks=2), upright, False),
        "filled.jpg": (encoded(colour, "JPEG").replace(b"\xff\xd9", b"\xff\xff\xff\xd9"), upright, False),
        "interlaced.png": (interlaced(13, 21), (13, 21), False),
        "more-than-the-pixels.png": (
            png_header(3, 2) + chunk(b"IDAT", zlib.compress(bytes(20)) + b"?") + chunk(b"IEND", b""),
            (2, 3),
            True,
        ),
        **{name: (content, size, True) for name, (content, size) in odd_images().items()},
        **{name: (content, size, True) for name, (content, size) in rare_images().items()},
    }


def rare_images() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Name -> file that is neither JPEG nor PNG, and its size when upright."""
    colour = Image.fromarray(np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8)))
    size = (24, 40)
    alpha = Image.fromarray(np.concatenate([pixels(2), pixels(3)[:, :, :1]], axis=2))
    several = {"save_all": True, "append_images": [colour.rotate(180)]}
    return {
        "lossy.webp": (encoded(colour, "WEBP"), size),
        "lossless.webp": (encoded(colour, "WEBP", lossless=True), size),
        "alpha.webp": (encoded(alpha, "WEBP", lossless=True), (8, 8)),
        "animated.webp": (encoded(colour, "WEBP", lossless=True, **several), size),
        "turned.webp": (encoded(colour, "WEBP", exif=exif(6)), size[::-1]),
        "webp.jpg": (encoded(colour, "WEBP"), size),
        "rgb.bmp": (encoded(colour, "BMP"), size),
        "palette.bmp": (encoded(colour.convert("P"), "BMP"), size),
        "rgb.tif": (encoded(colour, "TIFF"), size),
        "grey.tiff": (encoded(colour.convert("L"), "TIFF", compression="tiff_lzw"), size),
        "jpeg.tif": (encoded(colour, "TIFF", compression="jpeg"), size),
        "cmyk.tif": (encoded(colour.convert("CMYK"), "TIFF"), size),
        "alpha.tif": (encoded(alpha, "TIFF"), (8, 8)),
        "big.tif": (encoded(colour, "TIFF", big_tiff=True), size),
        "pages.tif": (encoded(colour, "TIFF", **several), size),
        "turned.tif": (encoded(colour, "TIFF", exif=exif(6)), size[::-1]),
        "rgb.gif": (encoded(colour, "GIF"), size),
        "animated.gif": (encoded(colour, "GIF", **several), size),
        "transparent.gif": (encoded(alpha, "GIF"), (8, 8)),
        "grey.gif": (encoded(colour.convert("L"), "GIF"), size),
    }


def interlaced(height: int, width: int, filters: int = 0) -> bytes:
    """A grey PNG in seven passes, of noise."""
    rng = np.random.default_rng(0)
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b""
    for left, top, across, down in passes:
        columns = len(range(left, width, across))
        for _ in range(top, height if columns else 0, down):
            rows += bytes([filters]) + rng.integers(0, 256, columns, dtype=np.uint8).tobytes()
    header = PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    return header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def segments(jpeg: bytes) -> list[bytes]:
    """Of a JPEG: its start, the segments of its header, and all from the first scan on."""
    parts, at = [jpeg[:2]], 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        parts.append(jpeg[at:end])
        at = end
    return [*parts, jpeg[at:]]


def segment(marker: int, data: bytes) -> bytes:
    """Of a JPEG."""
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def scan_start(jpeg: bytes) -> int:
    """Where the compressed pixels of a JPEG begin."""
    at = jpeg.index(b"\xff\xda")
    return at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")


def exif_segment(kind: int, count: int, value: bytes) -> bytes:
    """With one orientation, of any type and length."""
    entry = struct.pack(">HHI", ExifTags.Base.Orientation, kind, count) + value
    return segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + bytes(4))


def animated_png(before: bytes, behind: bytes = b"") -> bytes:
    """One red image of 4x4 pixels, with chunks before and behind its own pixels."""
    pixels_of = chunk(b"IDAT", zlib.compress((b"\0" + b"\xff\0\0" * 4) * 4))
    return png_header(4, 4) + before + pixels_of + behind + chunk(b"IEND", b"")


def frame_control(number: int, side: int = 4) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, side, side, 0, 0, 1, 10, 0, 0))


def frame_of(number: int) -> bytes:
    """A green frame of 4x4 pixels."""
    green = zlib.compress((b"\0" + b"\0\xff\0" * 4) * 4)
    return chunk(b"fdAT", struct.pack(">I", number) + green)


def odd_images() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Name -> file that Pillow reads, and DALI refuses or reads otherwise, and its size when upright."""
    colour = Image.fromarray(np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8)))
    size = (24, 40)
    jpeg, png, palette = encoded(colour, "JPEG"), encoded(colour), encoded(colour.convert("P"))
    parts, first = segments(jpeg), png.index(b"IDAT") - 4
    plte = palette.index(b"PLTE") - 4
    second = palette[plte : plte + 12 + int.from_bytes(palette[plte : plte + 4], "big")]
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(colour))
    start, end = png_header(40, 24), chunk(b"IEND", b"")
    unpacked = zlib.compress(rows)
    two_frames = chunk(b"acTL", struct.pack(">II", 2, 0))
    behind = frame_control(0) + frame_of(1) + frame_control(2) + frame_of(3)
    found = {
        f"{name}-{place}.jpg": (b"".join([*parts[:place], junk, *parts[place:]]), size)
        for name, junk in (
            ("zeros", b"\0\0"),
            ("text", b"abc"),
            ("stuffing", b"\xff\0"),
            ("restart", b"\xff\xd0"),
        )
        for place in (2, 4, len(parts) - 1)
    }
    return (
        found
        | {
            "long-orientation.jpg": (jpeg[:2] + exif_segment(4, 1, b"\0\0\0\x06") + jpeg[2:], size[::-1]),
            "no-orientation.jpg": (jpeg[:2] + exif_segment(3, 0, b"\0\x06\0\0") + jpeg[2:], size),
            "two-orientations.jpg": (  # on which DALI crashes
                jpeg[:2] + b"".join(exif_segment(3, 1, bytes([0, n, 0, 0])) for n in (6, 3)) + jpeg[2:],
                size[::-1],
            ),
            "few-scans.jpg": (few_scans(colour), size),
            "no-orientation.png": (
                png[:first] + chunk(b"eXIf", exif_segment(3, 0, b"\0\x06\0\0")[10:]) + png[first:],
                size,
            ),
            "two-palettes.png": (palette[:plte] + second + palette[plte:], size),
            "unknown-critical.png": (png[:first] + chunk(b"ABCD", b"?") + png[first:], size),
            "reserved.png": (png[:first] + chunk(b"abcd", b"?") + png[first:], size),
            "two-headers.png": (png[:33] + png[8:], size),
            "long-header.png": (PNG_START + chunk(b"IHDR", png[16:29] + b"?") + png[33:], size),
            "no-checksum.png": (start + chunk(b"IDAT", unpacked[:-4]) + end, size),
            "no-frames.png": (png[:first] + chunk(b"acTL", bytes(8)) + png[first:], size),
            "hidden.png": (animated_png(two_frames, behind), (4, 4)),
            "hidden-grey.png": (
                encoded(
                    colour.convert("L"),
                    save_all=True,
                    append_images=[colour.rotate(180).convert("L"), colour.convert("L")],
                    default_image=True,
                ),
                size,
            ),
        }
    )


def few_scans(image: Image.Image) -> bytes:
    """A progressive JPEG that ends after half of its scans, which decoders then smooth."""
    whole = encoded(image, "JPEG", progressive=True)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    return whole[: scans[len(scans) // 2]] + b"\xff\xd9"


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
        "page.png": (b"\n<HTML>not found</html>", "is an HTML page instead of an image"),
        "chinese.png": (("\u65cb\u8f6c" * 100).encode(), "is a text file"),
        "text.png": ("no image, alas \u2026".encode(), "is a text file"),
        "avif.jpg": (encoded(colour, "AVIF"), "is a HEIC or AVIF image: convert it"),
        "document.jpg": (encoded(colour, "PDF"), "is a PDF document: convert it"),
        "ppm.png": (encoded(colour, "PPM"), "is of an unknown kind"),
        "packed.jpg": (gzip.compress(jpeg), "is a gzip archive"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        "zeros.jpg": (bytes(len(jpeg)), "is full of zero bytes"),
        "half.webp": (encoded(colour, "WEBP")[:-20], "cannot be decoded: it is damaged or of a rare kind"),
        "half.bmp": (encoded(colour, "BMP")[:-20], "cannot be decoded: it is damaged or of a rare kind"),
        "half.gif": (encoded(large, "GIF")[:-500], "cannot be decoded: it is damaged or of a rare kind"),
        "half.tif": (half_tiff(large), "cannot be decoded: it is damaged or of a rare kind"),
        "lab.tif": (encoded(colour.convert("LAB"), "TIFF"), "cannot be decoded: it is damaged or of a rare"),
        "bomb.bmp": (bmp_header(20_000, 20_000), "is a decompression bomb"),
        "long.bmp": (bmp_header(40_000, 1), "has more than 32767 pixels per side"),
        "deep-grey.tif": (encoded(Image.fromarray(deep[:, :, 0]), "TIFF"), "is a grey image of 16 bits"),
        "float.tif": (encoded(Image.fromarray(deep[:, :, 0]).convert("F"), "TIFF"), "is a grey image of 16"),
        "header-only.jpg": (jpeg[:20], "has a header that is damaged"),
        "no-header.jpg": (jpeg[:3] + b"\0" * 200, "has a header that is damaged"),
        "no-header.png": (PNG_START, "has a header that is damaged"),
        "spoilt-header.png": (png[:20] + b"\xff" + png[21:], "has a header that is damaged"),
        "no-pixels.png": (no_pixels, "has a header that is damaged, declares no pixels"),
        "bomb.png": (bomb, "is a decompression bomb"),
        "long.png": (long, "has more than 32767 pixels per side"),
        "no-end.jpg": (jpeg[:-2], "is truncated"),
        "half.jpg": (jpeg[: 3 * len(jpeg) // 4], "is truncated"),
        "half-with-thumbnail.jpg": (
            encoded(large, "JPEG", exif=with_thumbnail())[:-200],
            "is truncated",
        ),
        "half-of-several.jpg": (
            encoded(large, "MPO", save_all=True, append_images=[colour], exif=with_thumbnail())[:2000],
            "is truncated",
        ),
        "half-and-zeros.jpg": (jpeg[: len(jpeg) // 2] + bytes(1 << 17), "is truncated"),
        "half.png": (png[: len(png) // 2], "is damaged: a chunk"),
        "no-end.png": (png[:-12], "is damaged: a chunk"),
        "flipped.png": (bytes(flipped), "is damaged: a chunk"),
        "deep-grey.png": (deep_png(deep, 0), "is a grey image of 16 bits"),
        **damaged_pixels(large),
    }


def bmp_header(width: int, height: int) -> bytes:
    """A BMP without its pixels."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def half_tiff(image: Image.Image) -> bytes:
    """A TIFF whose directory stands before its pixels, half of which are missing."""
    whole = encoded(image, "TIFF")
    return whole[: len(whole) // 2]


def damaged_pixels(image: Image.Image) -> dict[str, tuple[bytes, str]]:
    """The same for images whose headers, checksums and ends are right."""
    marker = "is damaged: its compressed pixels contain"
    found = {}
    for name, options in (
        ("plain", {}),
        ("progressive", {"progressive": True}),
        ("restarts", {"restart_marker_blocks": 3}),
    ):
        jpeg = encoded(image, "JPEG", quality=95, **options)
        start = scan_start(jpeg)
        for number in (0x01, 0x23, 0xC0, 0xD8, 0xE5, 0xF0):
            for share in (0.02, 0.5, 0.98):
                at = start + int(share * (len(jpeg) - start))
                at += jpeg[at - 1] == 0xFF  # not between the two bytes of one
                spoilt = jpeg[:at] + bytes([0xFF, number]) + jpeg[at:]
                found[f"{name}-{number:x}-{share}.jpg"] = (spoilt, marker)
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(image))
    packed, length = zlib.compress(rows), 1 + 3 * image.width
    start, end = png_header(*image.size), chunk(b"IEND", b"")
    pixels_of = "is damaged: its compressed pixels"
    datas = {
        "empty": b"",
        "cut": packed[: len(packed) // 2],
        "a-byte-short": zlib.compress(rows[:-1]),
        "rows-short": zlib.compress(rows[: length * 20]),
        "no-zlib": rows[:500],
        "flipped": packed[:700] + bytes([packed[700] ^ 8]) + packed[701:],
        "first-filter": zlib.compress(b"\x09" + rows[1:]),
        "last-filter": zlib.compress(rows[:-length] + b"\x05" + rows[1 - length :]),
    }
    found |= {f"{name}.png": (start + chunk(b"IDAT", data) + end, pixels_of) for name, data in datas.items()}
    undecodable = "is damaged: it cannot be decoded"
    bad_sum = packed[:-4] + b"?sum"
    tables = segments(encoded(image, "JPEG"))
    return found | {
        "interlaced-filter.png": (interlaced(13, 21, filters=5), pixels_of),
        "no-pixels-at-all.png": (start + end, undecodable),
        "bad-sum.png": (start + chunk(b"IDAT", bad_sum) + end, pixels_of),
        "apart.png": (
            start + chunk(b"IDAT", packed[:99]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", packed[99:]) + end,
            undecodable,
        ),
        "frame-elsewhere.png": (
            animated_png(chunk(b"acTL", struct.pack(">II", 1, 0)) + frame_control(0, side=2)),
            undecodable,
        ),
        "no-quantisation.jpg": (b"".join(part for part in tables if part[1] != 0xDB), undecodable),
        "spoilt-table.jpg": (
            b"".join(part[:5] + b"\xff" * (len(part) - 5) if part[1] == 0xC4 else part for part in tables),
            undecodable,
        ),
        "lossless.jpg": (
            b"".join(b"\xff\xc3" + part[2:] if part[1] == 0xC0 else part for part in tables),
            undecodable,
        ),
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
                seed = number + 100 * (half == "test")
                path.write_bytes(encoded(pixels(seed, 16, 16) // 2 + 120 * place, "JPEG"))
    return folder
