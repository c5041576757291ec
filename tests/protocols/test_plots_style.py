"""Figures are written whole, the same bytes each time, without torch and without global state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from PIL import Image
from plot_inputs import embedding_result

from rotnet_fast.errors import CannotWriteError
from rotnet_fast.plots import style
from rotnet_fast.plots.embedding import embedding


@pytest.fixture
def figure() -> Figure:
    return embedding(embedding_result())


def test_a_figure_gives_the_same_bytes_again(figure: Figure, tmp_path: Path) -> None:
    written = style.save(figure, tmp_path / "a" / "one.two")
    assert written == [tmp_path / "a" / "one.two.png", tmp_path / "a" / "one.two.svg"]
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in style.save(figure, tmp_path / "b")] == first
    assert b"<dc:date>" not in first[1]
    assert sorted(os.listdir(tmp_path / "a")) == ["one.two.png", "one.two.svg"]


def test_equal_results_give_equal_svg_in_another_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from rotnet_fast.plots.confusion import confusion\n"
        "from rotnet_fast.plots.style import save\n"
        "save(confusion([[3, 1], [0, 2]], ['cat', 'dog'], 'title'), Path(sys.argv[1]))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    contents = []
    for number in range(2):
        environment = {**os.environ, "PYTHONHASHSEED": str(number), "MPLBACKEND": "TkAgg"}
        path = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, env=environment)
        contents.append([path.with_suffix(suffix).read_bytes() for suffix in (".png", ".svg")])
    assert contents[0] == contents[1]


def test_no_part_of_the_plots_needs_torch() -> None:
    modules = sorted(path.stem for path in Path(style.__file__).parent.glob("[a-z]*.py"))
    assert len(modules) >= 9
    program = (
        f"import sys\nfrom rotnet_fast.plots import {', '.join(modules)}\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_png_has_200_dots_per_inch(figure: Figure, tmp_path: Path) -> None:
    png, _ = style.save(figure, tmp_path / "a")
    with Image.open(png) as image:
        width, height = figure.get_size_inches()
        assert image.size == (int(200 * width), int(200 * height))
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_settings_of_matplotlib_are_as_before(figure: Figure, tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 33}):
        before = dict(matplotlib.rcParams)
        style.save(embedding(embedding_result()), tmp_path / "a")
        assert dict(matplotlib.rcParams) == before


def test_settings_of_the_user_have_no_say(figure: Figure, tmp_path: Path) -> None:
    usual = style.save(figure, tmp_path / "a")[1].read_bytes()
    with matplotlib.rc_context({"font.size": 33, "svg.hashsalt": "other", "figure.facecolor": "red"}):
        assert style.save(figure, tmp_path / "a")[1].read_bytes() == usual


def test_a_folder_that_cannot_be_made_is_named(figure: Figure, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWriteError, match=r"cannot write .*/file: Not a directory"):
        style.save(figure, tmp_path / "file" / "a")
