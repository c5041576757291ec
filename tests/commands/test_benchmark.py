"""The benchmark command measures everything that it says, writes it down whole, and refuses clearly."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.table import render
from rotnet_fast.benchmark import BenchmarkConfig, main
from rotnet_fast.benchmarking.levels import BASELINE, DEFAULT, LEVELS

KINDS = {"convolution", "BN + ReLU", "pool", "loss", "optimiser"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick run over everything, of two networks."""
    folder = tmp_path_factory.mktemp("benchmark") / "new"
    flags = "--quick --device cpu --batch-size 2 --blocks 3 4 --width 0.1"
    assert main(shlex.split(f"--output {folder / 'found.json'} {flags}")) == 0
    return folder


@pytest.fixture
def results(folder: Path) -> Any:
    return json.loads((folder / "found.json").read_text())


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_the_file_says_where_of_what_and_with_which_settings(results: Any) -> None:
    assert results["data"] == "synthetic images"
    assert results["commit"] == results["environment"]["commit"]
    assert results["environment"]["torch"]
    assert results["settings"]["blocks"] == [3, 4]
    assert (results["batch"], results["width"]) == (2, 0.1)


def test_every_number_is_finite_and_none_below_zero(results: Any) -> None:
    found = [*numbers({name: results[name] for name in ("ceilings", "op", "stages", "steps")})]
    assert len(found) > 300
    assert all(math.isfinite(number) and number >= 0 for number in found)


def test_ceilings_are_measured(results: Any) -> None:
    ceilings = results["ceilings"]
    assert ceilings["copy_bytes_per_second"] > 1e6
    assert ceilings["matrix_flops_per_second"].keys() == {"fp32", "bf16"}


def test_the_op_is_measured_at_all_sizes_rotations_and_types(results: Any) -> None:
    found = {(row["mode"], row["side"], row["rotations"], row["dtype"]) for row in results["op"]}
    for rotations in (4, 8):
        for dtype in ("fp32", "bf16"):
            expected = {("batch", 32), ("batch", 224), ("epoch", 32)}
            assert {(*case, rotations, dtype) for case in expected} <= found


def test_stages_of_all_kinds_are_measured_in_both_directions(results: Any) -> None:
    rows = results["stages"]
    assert {row["kind"] for row in rows} == KINDS
    for kind in KINDS - {"optimiser"}:
        assert {row["direction"] for row in rows if row["kind"] == kind} == {"forward", "backward"}
    for row in rows:
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
    layers = [layer for row in rows if row["direction"] == "forward" for layer in row["layers"]]
    convolutions = {f"conv{block}.{number}" for block in (1, 2, 3, 4) for number in (0, 1, 2)}
    assert sorted(layers) == sorted([*convolutions, *convolutions, "conv1.3", "conv2.3", "classifier"])


def test_every_level_of_every_network_is_measured_or_skipped_with_a_reason(results: Any) -> None:
    rows = {(row["blocks"], row["level"]): row for row in results["steps"]}
    expected = {level.name for level in LEVELS if "cpu" in level.devices}
    assert rows.keys() == {(blocks, name) for blocks in (3, 4) for name in expected}
    for row in rows.values():
        if "skipped" in row:
            assert row["skipped"] == "not compiled with --quick"
            continue
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["seconds_per_100_epochs"] == pytest.approx(5e6 / row["images_per_second"])
        baseline = rows[row["blocks"], BASELINE]
        assert row["times_baseline"] == pytest.approx(baseline["seconds"] / row["seconds"])
        assert row["data_share"] == pytest.approx(row["data_seconds"] / row["seconds"])
        assert row["joules_per_step"] is None
    assert "skipped" not in rows[4, DEFAULT]


def test_the_roofline_lies_beside_the_file(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["found.json", "found.png", "found.svg"]
    with Image.open(folder / "found.png") as image:
        assert image.size[0] == 1400


def test_the_table_of_levels_is_made_from_the_file(results: Any) -> None:
    text = render(results, "found.json")
    row = next(row for row in results["steps"] if (row["blocks"], row["level"]) == (4, DEFAULT))
    share = 100 * row["data_share"]
    assert (
        f"| cpu, NIN-4 x0.1 | 2 | {DEFAULT} | {row['images_per_second']:,.1f} | {row['times_baseline']:.2f} "
        f"| {share:.2f} % |"
    ) in text
    assert "synthetic images" in text.splitlines()[-1]


def test_a_part_alone_is_measured_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "op.json"
    assert main(shlex.split(f"--output {output} --quick --device cpu --what op")) == 0
    found = json.loads(output.read_text())
    assert {"op", "ceilings"} <= found.keys()
    assert not {"stages", "steps"} & found.keys()
    assert "64 x 32x32, 8 rotations, bf16, whole epoch" in capsys.readouterr().out


def test_without_a_file_the_tables_are_printed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--quick --device cpu --what stages --batch-size 2 --blocks 3 --width 0.1"
    assert main(shlex.split(flags)) == 0
    printed = capsys.readouterr().out
    assert "stage of the NIN-4 step" in printed
    assert "written:" not in printed.replace("read and written:", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ("--output found.txt", 2, "output is found.txt; its name must end in .json"),
        ("--output a.json --quick --full", 2, "quick and full are mutually exclusive; choose one of them"),
        ("--output a.json --batch-size 0", 2, "batch-size is 0; it must be at least 1"),
        ("--output a.json --width 0", 2, "width is 0; it must lie in (0, 16]"),
        ("--output a.json --device gpu", 2, "device is gpu; it must be auto, cpu, cuda, cuda:N or mps"),
        ("--output a.json --device cuda:99", 2, "device is cuda:99"),
        ("--output {file}/a.json --quick --device cpu", 7, "cannot write"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    assert main(shlex.split(flags.format(file=tmp_path / "file"))) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert sentence in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("flags", ["--help", "--wrong", "--output a.json --what nothing", "--output a.txt"])
def test_help_and_wrong_flags_answer_without_torch(flags: str) -> None:
    program = (
        "import sys; from rotnet_fast.benchmark import main\n"
        "try:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as error:\n    code = error.code\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *shlex.split(flags)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if flags == "--help" else 2), done.stderr


def test_steps_have_as_many_images_as_in_training_where_that_is_bearable() -> None:
    config = BenchmarkConfig(Path("a.json"))
    assert (config.images_per_step("cuda"), config.images_per_step("cpu")) == (128, 16)
    assert BenchmarkConfig(Path("a.json"), full=True).images_per_step("cpu") == 128
    assert BenchmarkConfig(Path("a.json"), full=True, batch_size=5).images_per_step("cpu") == 5
    assert BenchmarkConfig(Path("a.json"), what=("steps", "op")).parts() == ["op", "steps"]
