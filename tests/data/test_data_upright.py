"""Files that are turned upright: shown turned to the bit, and otherwise as they were."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from image_files import (
    XMP,
    chunk,
    deep_png,
    encoded,
    exif,
    exif_segment,
    good_images,
    interlaced,
    odd_images,
    pixels,
    png_header,
    scan_start,
    segment,
    segments,
)
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from rotnet_fast.data import exif as exif_data
from rotnet_fast.data.decode import decode_rgb
from rotnet_fast.data.png import read_chunks
from rotnet_fast.data.upright import KeptError, turn_upright

TURNS = (0, 90, 180, 270)
COLOUR = Image.fromarray(np.kron(pixels(0, 3, 5), np.ones((8, 8, 1), np.uint8)))  # JPEG keeps flat areas
SIZED = Image.fromarray(pixels(1, 13, 22))  # no multiples of JPEG's blocks


def tiff(order: str, orientation: int | None, more: bool = True) -> bytes:
    """EXIF data with a maker's name, perhaps an orientation, and a second directory with a thumbnail."""
    entries = [struct.pack(f"{order}HHII", 0x010F, 2, 6, 0)] if more else []
    if orientation is not None:
        entries.append(struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0))
    if more:
        entries.append(struct.pack(f"{order}HHII", 0xEA1C, 4, 1, 0x7FFFFFF0))
    end = 8 + 2 + 12 * len(entries) + 4
    if more:
        entries[0] = struct.pack(f"{order}HHII", 0x010F, 2, 6, end)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries)
    second = struct.pack(f"{order}HHHII", 1, 0x0103, 3, 1, 6 if order == "<" else 6 << 16)
    following = struct.pack(f"{order}I", end + 6 if more else 0)
    return mark + struct.pack(f"{order}I", 8) + directory + following + (b"Maker\0" + second if more else b"")


def jpegs(orientation: int | None) -> dict[str, bytes]:
    """JPEGs of all kinds that are shown in this orientation; None leaves it out."""
    plain = encoded(SIZED, "JPEG")
    jfif, *rest = segments(plain)[1:]
    app1 = {
        name: segment(0xE1, b"Exif\0\0" + tiff(order, orientation, more))
        for name, order, more in (("intel", "<", True), ("motorola", ">", True), ("empty", ">", False))
    }
    exif_ = {} if orientation is None else {"exif": exif(orientation)}
    found = {
        "little-endian": b"".join([plain[:2], app1["intel"], *rest]),
        "big-endian": b"".join([plain[:2], app1["motorola"], *rest]),
        "only the orientation": b"".join([plain[:2], app1["empty"], *rest]),
        "JFIF before EXIF": b"".join([plain[:2], jfif, app1["intel"], *rest]),
        "EXIF before JFIF": b"".join([plain[:2], app1["motorola"], jfif, *rest]),
        "progressive": encoded(SIZED, "JPEG", progressive=True, **exif_),
        "grey": encoded(SIZED.convert("L"), "JPEG", **exif_),
        "CMYK": encoded(SIZED.convert("CMYK"), "JPEG", **exif_),
        "no subsampling": encoded(SIZED, "JPEG", subsampling=0, **exif_),
        "restarts": encoded(SIZED, "JPEG", restart_marker_blocks=1, **exif_),
        "followed by a video": encoded(SIZED, "JPEG", **exif_) + bytes(999),
    }
    if orientation is None:
        found |= {"no EXIF": plain, "neither EXIF nor JFIF": b"".join([plain[:2], *rest])}
    return found


def check(content: bytes, turned: int) -> bytes:
    """Turn a file upright, and compare what is shown, to the bit."""
    new = turn_upright(content, turned)
    expected = np.rot90(decode_rgb(content), -turned // 90)
    assert np.array_equal(decode_rgb(new), expected)
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(new)) as after:
        assert (after.format, after.mode) == (before.format, before.mode)
    return new


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_jpegs_are_turned_by_their_tag_with_every_byte_of_the_pixels_kept(
    orientation: int | None, turned: int
) -> None:
    for name, content in jpegs(orientation).items():
        new = check(content, turned)
        assert new[scan_start(new) :] == content[scan_start(content) :], name
        tables = [part for part in segments(new) if part[1] not in (0xE1, 0xD8)]
        assert tables == [part for part in segments(content) if part[1] not in (0xE1, 0xD8)], name
        if turned == 0:
            assert new == content
        elif orientation is not None:  # only its value has changed
            different = [place for place, (a, b) in enumerate(zip(content, new, strict=True)) if a != b]
            assert len(different) == 1, name
            (place,) = different
            assert 1 <= new[place] <= 8


@pytest.mark.parametrize("turned", TURNS)
def test_turning_back_gives_what_was_decode_rgb(turned: int) -> None:
    for name, content in (jpegs(6) | {"png": encoded(SIZED, exif=exif(5))}).items():
        assert np.array_equal(
            decode_rgb(check(check(content, turned), -turned % 360)), decode_rgb(content)
        ), name


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_added_to_exif_data_without_moving_anything(order: str) -> None:
    old = tiff(order, None)
    for tail in (b"", b"odd"):
        new = exif_data.with_orientation(old + tail, 6)
        assert new[8 : len(old + tail)] == (old + tail)[8:]
        assert exif_data.is_usual(new)
        before, after = Image.Exif(), Image.Exif()
        before.load(b"Exif\0\0" + old)
        after.load(b"Exif\0\0" + new)
        assert dict(after) == {**dict(before), ExifTags.Base.Orientation: 6}
        assert after[ExifTags.Base.Make] == "Maker"
        assert after.get_ifd(ExifTags.IFD.IFD1) == before.get_ifd(ExifTags.IFD.IFD1) != {}
        place = struct.unpack_from(f"{order}I", new, 4)[0]
        tags = [struct.unpack_from(f"{order}H", new, place + 2 + 12 * n)[0] for n in range(3)]
        assert place % 2 == 0
        assert tags == sorted(tags)


def test_other_metadata_of_a_jpeg_is_kept() -> None:
    icc = b"a colour profile" * 9
    content = encoded(COLOUR, "JPEG", icc_profile=icc, comment=b"at the lake", dpi=(300, 300), xmp=b"<x/>")
    new = check(content, 90)
    with Image.open(io.BytesIO(new)) as image:
        assert image.info["icc_profile"] == icc
        assert image.info["comment"] == b"at the lake"
        assert image.info["dpi"] == (300, 300)
        assert image.info["xmp"] == b"<x/>"


def test_xmp_data_agree_with_the_new_tag() -> None:
    content = encoded(COLOUR, "JPEG", xmp=XMP)  # which says 6
    new = check(content, 90)  # 6 is shown turned by 270, and upright is 90 less: by 180, which is 3
    assert new.count(b'tiff:Orientation="3"') == 1
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif()[ExifTags.Base.Orientation] == 3


def test_every_kind_of_image_is_shown_turned_or_refused_in_words() -> None:
    refused = {}
    for name, (content, _, _) in good_images().items():
        for turned in TURNS:
            try:
                check(content, turned)
            except KeptError as error:
                refused[name] = str(error)
    unusual = {name for name, why in refused.items() if "unusual header" in why or "the standard" in why}
    assert unusual <= odd_images().keys() | {"filled.jpg", "more-than-the-pixels.png"}
    assert refused.keys() - unusual == {
        *("lossy.webp", "turned.webp", "webp.jpg", "animated.webp", "animated.gif", "pages.tif", "big.tif"),
        *("mpo.jpg", "animated.png", "hidden.png", "hidden-grey.png"),
        *("deep-rgb.png", "deep-rgba.png", "deep-grey-alpha.png"),
    }


def test_an_album_keeps_its_length() -> None:
    album = encoded(COLOUR, "MPO", save_all=True, append_images=[COLOUR.rotate(180)])
    with pytest.raises(KeptError, match="several pictures"):
        turn_upright(album, 90)
    tagged = encoded(COLOUR, "MPO", save_all=True, append_images=[COLOUR.rotate(180)], exif=exif(6))
    assert b"MPF\0" in tagged
    assert len(check(tagged, 90)) == len(tagged)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("no byte order", b"??*\0\0\0\0\x08\0\0\0\0\0\0", "byte-order mark is missing"),
        ("directory behind the end", b"MM\0*\0\0\xff\0\0\0", "directory is missing"),
        ("fewer entries than counted", b"MM\0*\0\0\0\x08\0\x05" + bytes(12), "directory is cut off"),
    ],
)
def test_damaged_exif_data_are_left_alone(name: str, data: bytes, said: str) -> None:
    plain = encoded(COLOUR, "JPEG")
    with pytest.raises(KeptError, match=said):
        turn_upright(plain[:2] + segment(0xE1, b"Exif\0\0" + data) + plain[2:], 90)


def test_a_full_segment_is_not_made_longer() -> None:
    plain = encoded(COLOUR, "JPEG")
    full = b"Exif\0\0" + tiff("<", None)
    content = plain[:2] + segment(0xE1, full.ljust(0xFFFF - 2, b"\0")) + plain[2:]
    with pytest.raises(KeptError, match="no room"):
        turn_upright(content, 90)


def test_an_orientation_of_another_type_becomes_a_usual_one() -> None:
    plain = encoded(COLOUR, "JPEG")
    new = check(plain[:2] + exif_segment(4, 1, b"\0\0\0\x06") + plain[2:], 180)
    assert exif_data.is_usual(new[12:])


def pngs() -> dict[str, bytes]:
    """PNGs of all colour types and depths, with transparency and metadata."""
    rng = np.random.default_rng(0)
    found = {"interlaced": interlaced(13, 21)}
    for bits in (1, 2, 4, 8):
        values = rng.integers(0, 256, (13, -(-22 * bits // 8)), dtype=np.uint8)
        packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
        palette = chunk(b"PLTE", rng.integers(0, 256, 3 << bits, dtype=np.uint8).tobytes())
        end = chunk(b"IDAT", packed) + chunk(b"IEND", b"")
        found |= {
            f"grey, {bits} bits": png_header(22, 13, bits, 0) + end,
            f"grey, {bits} bits, transparent": png_header(22, 13, bits, 0) + chunk(b"tRNS", b"\0\1") + end,
            f"palette, {bits} bits": png_header(22, 13, bits, 3) + palette + end,
            f"palette, {bits} bits, transparent": png_header(22, 13, bits, 3)
            + palette
            + chunk(b"tRNS", b"\x80")
            + end,
        }
    alpha = Image.fromarray(rng.integers(0, 256, (13, 22, 4), dtype=np.uint8))
    return found | {
        "palette of two": png_header(3, 2, 8, 3)
        + chunk(b"PLTE", b"\xff\0\0\0\xff\0")
        + chunk(b"IDAT", zlib.compress(b"\0\0\1\1\0\1\0\0"))
        + chunk(b"IEND", b""),
        "colour": encoded(SIZED),
        "one transparent colour": encoded(SIZED, transparency=tuple(np.asarray(SIZED)[0, 0].tolist())),
        "alpha": encoded(alpha),
        "grey and alpha": encoded(alpha.convert("LA")),
    }


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pngs_are_turned_by_their_pixels_with_the_same_bits(orientation: int, turned: int) -> None:
    for name, plain in pngs().items():
        tag = chunk(b"eXIf", exif(orientation)[6:])
        content = plain[:33] + tag + plain[33:]
        new = check(content, turned)
        header, other = (dict(reversed(list(read_chunks(part)))) for part in (new, content))
        assert bytes(header[b"IHDR"])[8:12] == bytes(other[b"IHDR"])[8:12], name
        kept = [
            [(kind, bytes(data)) for kind, data in read_chunks(part) if kind not in (b"IHDR", b"IDAT")]
            for part in (new, content)
        ]
        assert kept[0] == kept[1], name
        both = []
        for part in (content, new):
            with Image.open(io.BytesIO(part)) as image:
                both.append(np.asarray(image.convert("RGBA")))
        stored = -turned if orientation not in (2, 4, 5, 7) else turned
        assert np.array_equal(np.rot90(both[0], stored // 90), both[1]), name  # alpha included


def test_metadata_of_a_png_are_kept_before_and_behind_the_pixels() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "at the lake")
    text.add_itxt("Title", "Lake", "en", "Title")
    plain = encoded(SIZED, pnginfo=text, icc_profile=b"profile", dpi=(300, 300), gamma=0.5)
    behind = chunk(b"tEXt", b"Late\0text") + plain[-12:]
    new = check(plain[:-12] + behind, 270)
    assert new.endswith(behind)
    with Image.open(io.BytesIO(new)) as image:
        assert image.info["icc_profile"] == b"profile"
        image.load()
        assert (image.info["Comment"], image.info["Title"]) == ("at the lake", "Lake")
        assert image.info["Late"] == "text"


def test_a_png_of_16_bits_is_refused_as_half_of_them_would_be_lost() -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (6, 7, 4), dtype=np.uint16)
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        with pytest.raises(KeptError, match="16 bits per channel"):
            turn_upright(deep_png(deep[:, :, :channels], colour), 90)
        assert turn_upright(deep_png(deep[:, :, :channels], colour), 0)


def test_what_pillow_would_lose_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    bmp = encoded(COLOUR, "BMP")
    save = Image.Image.save
    with monkeypatch.context() as patch:
        patch.setattr(
            Image.Image, "save", lambda image, *args, **kept: save(image.convert("P"), *args, **kept)
        )
        with pytest.raises(KeptError, match="not written without loss"):
            turn_upright(bmp, 90)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda image, stream, *args, **kept: stream.write(b"nothing"))
        with pytest.raises(KeptError, match="cannot be written"):
            turn_upright(bmp, 90)
    assert turn_upright(bmp, 90)


def test_alpha_of_rarer_formats_is_kept_to_the_bit() -> None:
    alpha = Image.fromarray(np.concatenate([pixels(2, 5, 9), pixels(3, 5, 9)[:, :, :1]], axis=2))
    for kind, options in (("WEBP", {"lossless": True, "exact": True}), ("TIFF", {}), ("GIF", {})):
        content = encoded(alpha, kind, **options)
        both = []
        for part in (content, check(content, 90)):
            with Image.open(io.BytesIO(part)) as image:
                both.append(np.asarray(ImageOps.exif_transpose(image).convert("RGBA")))
        assert np.array_equal(np.rot90(both[0], -1), both[1]), kind
