"""Headers of good and bad images of every kind, and what becomes of the bad ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import Pixels, bad_images, encoded, good_images, pixels, scan_images, write_tar

from rotnet_fast.data import scan
from rotnet_fast.data.decode import decode_image, decode_rgb, encode_ppm
from rotnet_fast.data.layout import list_folder
from rotnet_fast.data.scan import GOOD, REASONS, Scan, Scanner, check_images, examine
from rotnet_fast.data.source import FileSource
from rotnet_fast.errors import DataError

GOOD_IMAGES, BAD_IMAGES = good_images(), bad_images()


def source_of(folder: Path, files: dict[str, bytes]) -> FileSource:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    sizes = np.array([len(content) for content in files.values()], dtype=np.int64)
    return FileSource(str(folder), [str(folder / name) for name in files], sizes)


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_a_good_image_is_known_by_its_header(name: str) -> None:
    content, (height, width), convert = GOOD_IMAGES[name]
    assert examine(content) == (height, width, int(convert), GOOD)


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_the_size_is_that_of_the_decoded_image(name: str) -> None:
    content, size, _ = GOOD_IMAGES[name]
    assert decode_rgb(content).shape == (*size, 3)
    assert decode_image(content, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_told_by_its_reason(name: str) -> None:
    content, reason = BAD_IMAGES[name]
    height, width, convert, verdict = examine(content)
    assert (height, width, convert) == (0, 0, 0)
    assert REASONS[verdict].startswith(reason)


@given(
    name=st.sampled_from(sorted(GOOD_IMAGES)),
    position=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=8),
)
def test_whatever_is_spoilt_gets_a_verdict(name: str, position: float, junk: bytes) -> None:
    content = GOOD_IMAGES[name][0]
    at = int(position * len(content))
    height, width, convert, verdict = examine(content[:at] + junk + content[at + len(junk) :])
    assert 0 <= verdict < len(REASONS)
    assert (verdict == GOOD) == (min(height, width) > 0)
    assert convert in (0, 1)


def test_no_cut_of_a_file_passes_for_a_whole_one() -> None:
    for kind in ("PNG", "JPEG"):
        content = encoded(pixels(0, 24, 24), kind)
        assert examine(content)[3] == GOOD
        assert all(examine(content[:length])[3] != GOOD for length in range(len(content)))


def dali_decode(contents: list[bytes]) -> list[Pixels]:
    """As the CPU decoder of DALI does, one by one, as some would stop the others."""
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    dali = pytest.importorskip("nvidia.dali")
    pipeline = dali.Pipeline(1, 1, None, prefetch_queue_depth=1)
    files = iter(contents)
    with pipeline:
        file = fn.external_source(lambda: [np.frombuffer(next(files), np.uint8)])
        pipeline.set_outputs(fn.decoders.image(file, device="cpu", output_type=dali.types.RGB))
    pipeline.build()
    return [np.array(pipeline.run()[0].at(0)) for _ in contents]


def test_what_need_not_be_converted_has_the_same_pixels_in_dali() -> None:
    for_dali = {name: content for name, (content, _, convert) in GOOD_IMAGES.items() if not convert}
    for name, image in zip(for_dali, dali_decode(list(for_dali.values())), strict=True):
        assert np.array_equal(image, decode_rgb(for_dali[name])), name


def test_what_must_be_converted_reaches_dali_unchanged_as_ppm() -> None:
    expected = [decode_rgb(content) for content, _, convert in GOOD_IMAGES.values() if convert]
    for image, rgb in zip(dali_decode([encode_ppm(rgb) for rgb in expected]), expected, strict=True):
        assert np.array_equal(image, rgb)


def test_an_orientation_outside_exif_must_be_converted_as_dali_passes_it_over() -> None:
    names = ["turned-by-xmp.jpg", "turned-by-xmp.png", "turned-by-text.png"]
    for image in dali_decode([GOOD_IMAGES[name][0] for name in names]):
        assert image.shape == (24, 40, 3)


def test_a_scan_has_a_row_for_each_image_in_order(tmp_path: Path) -> None:
    files = {name: content for name, (content, _, _) in GOOD_IMAGES.items()}
    source = source_of(tmp_path, {**files, "bad.png": b"bad"})
    found = scan_images(source, [tmp_path / "cache"])
    assert found.sizes.tolist() == [*(list(size) for _, size, _ in GOOD_IMAGES.values()), [0, 0]]
    assert found.convert.tolist() == [*(convert for _, _, convert in GOOD_IMAGES.values()), False]
    assert (found.verdicts != GOOD).tolist() == [False] * len(files) + [True]


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was looked at, and not known from an earlier run."""
    contents: list[bytes] = []

    def counted(content: bytes, decodes: bool) -> tuple[int, int, int, int]:
        contents.append(content)
        return examine(content, decodes)

    monkeypatch.setattr(scan, "examine", counted)
    return contents


def test_of_a_folder_that_changes_only_what_changed_is_looked_at_again(
    tmp_path: Path, looked_at: list[bytes]
) -> None:
    images = {f"{number}.png": encoded(pixels(number)) for number in range(6)}

    def look() -> list[int]:
        for path in (tmp_path / "images").iterdir():
            if path.name not in images:
                path.unlink()
        for name, content in images.items():
            path = tmp_path / "images" / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)
        looked_at.clear()
        return scan_images(list_folder(tmp_path / "images").source, place).verdicts.tolist()

    (tmp_path / "images").mkdir()
    place = [tmp_path / "cache"]
    assert look() == [GOOD] * 6
    assert len(looked_at) == 6
    assert (look(), looked_at) == ([GOOD] * 6, [])
    images["3.png"] = images["3.png"][:-20]
    assert sorted(look()) == [GOOD] * 5 + [
        REASONS.index("is damaged: a chunk is cut off or has a wrong checksum")
    ]
    assert looked_at == [images["3.png"]]
    del images["3.png"]
    assert (look(), looked_at) == ([GOOD] * 5, [])
    images["9.png"] = encoded(pixels(9))
    assert (look(), looked_at) == ([GOOD] * 6, [images["9.png"]])


def test_of_shards_only_the_images_of_those_that_changed_are_looked_at_again(
    tmp_path: Path, looked_at: list[bytes]
) -> None:
    shards = {
        f"{name}.tar": {f"{n}.png": encoded(pixels(10 * ord(name) + n)) for n in range(3)} for name in "ab"
    }
    for name, members in shards.items():
        write_tar(tmp_path / name, members)
    for _ in range(2):
        scan_images(list_folder(tmp_path).source, [tmp_path / ".cache"])
    assert len(looked_at) == 6
    shards["b.tar"]["7.png"] = encoded(pixels(7))
    write_tar(tmp_path / "b.tar", shards["b.tar"])
    looked_at.clear()
    found = scan_images(list_folder(tmp_path).source, [tmp_path / ".cache"])
    assert sorted(looked_at) == sorted(shards["b.tar"].values())
    assert found.verdicts.tolist() == [GOOD] * 7


def test_a_scan_of_some_images_keeps_what_is_known_of_others(tmp_path: Path, looked_at: list[bytes]) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels(number)))
    for positions in ([0, 1, 2, 3, 4], [1, 3], [4], [0, 2]):
        scanner = Scanner(list_folder(tmp_path).source, [tmp_path / ".cache"], progress=False)
        scanner.check(np.array(positions))
    assert len(looked_at) == 5


def test_what_was_looked_at_is_decoded_once_where_that_is_asked_for(
    tmp_path: Path, looked_at: list[bytes]
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels(number)))
    for check, count in (("structure", 3), ("decode", 6), ("decode", 6), ("structure", 6)):
        scan_images(list_folder(tmp_path).source, [tmp_path / ".cache"], check=check)
        assert len(looked_at) == count


def test_an_unreadable_image_is_looked_at_again_next_time(tmp_path: Path) -> None:
    source = source_of(tmp_path, {"0.png": encoded(pixels(0))})
    (tmp_path / "0.png").rename(tmp_path / "elsewhere.png")
    found = scan_images(source, [tmp_path / "cache"])
    assert [REASONS[verdict] for verdict in found.verdicts] == ["cannot be read"]
    (tmp_path / "elsewhere.png").rename(tmp_path / "0.png")
    found = scan_images(source, [tmp_path / "cache"])
    assert found.verdicts.tolist() == [GOOD]


def scan_with(bad: list[int], count: int) -> tuple[FileSource, Scan, npt.NDArray[np.int64]]:
    verdicts = np.full(count, GOOD, np.int32)
    verdicts[bad] = REASONS.index("is empty")
    names = [f"data/{number}.jpg" for number in range(count)]
    source = FileSource("data", names, np.ones(count, np.int64))
    sizes, contents = np.ones((count, 2), np.int32), np.zeros((count, 4), np.int32)
    return source, Scan(sizes, np.zeros(count, np.bool_), verdicts, contents), np.array(bad, np.int64)


def test_bad_images_are_an_error_that_names_them_and_the_way_out() -> None:
    with pytest.raises(DataError) as caught:
        check_images(*scan_with([3, 4], 10), "fail")
    assert str(caught.value) == (
        "2 of 10 images are unusable: data/3.jpg is empty; data/4.jpg is empty. Repair or remove them, "
        "or skip them with --bad-images skip"
    )


def test_an_error_about_many_bad_images_names_the_first_few() -> None:
    with pytest.raises(DataError, match=r"^7 of 10 .*data/4.jpg is empty; and 2 others\. ") as caught:
        check_images(*scan_with(list(range(7)), 10), "fail")
    assert "data/5.jpg" not in str(caught.value)


def test_a_list_that_is_too_long_for_an_error_is_written_whole(tmp_path: Path) -> None:
    source, found, bad = scan_with(list(range(7)), 10)
    source.names[6] = "data/a\nb\x1b.jpg"  # type: ignore[index]
    for way in ("fail", "skip"):
        with pytest.raises(
            DataError, match=rf"and 2 others \(see {tmp_path}/.*bad-images.txt for all of them\)"
        ):
            check_images(source, found, bad, way, [Path("/dev/null/nowhere"), tmp_path / "cache"])
        lines = (tmp_path / "cache" / "bad-images.txt").read_text().splitlines()
        assert [line.split("\t") for line in lines[:6]] == [[f"data/{n}.jpg", "is empty"] for n in range(6)]
        assert lines[6:] == ["data/a\\nb\\x1b.jpg\tis empty"]


@pytest.mark.parametrize(("count", "allowed"), [(20, 1), (1999, 1), (2000, 2), (5000, 5)])
def test_one_in_a_thousand_and_at_least_one_may_be_skipped(
    count: int, allowed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = list(range(0, 2 * allowed, 2))
    check_images(*scan_with(bad, count), "skip")
    assert f"WARNING: {allowed} of {count:,} image" in (printed := capsys.readouterr().err)
    assert printed.count(" is empty\n") == allowed
    with pytest.raises(DataError, match=f"--bad-images skip allows at most {allowed}"):
        check_images(*scan_with(list(range(allowed + 1)), count), "skip")


def test_where_all_is_well_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for choice in ("fail", "skip"):
        check_images(*scan_with([], 3), choice)
    assert capsys.readouterr().err == ""


def test_worker_processes_do_not_import_torch() -> None:
    command = "import sys, rotnet_fast.data.scan, rotnet_fast.data.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
