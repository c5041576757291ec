"""Common style of all figures, and how to save them.

Made for print at the size given: fonts of at least 8 points, a white background, the colour-blind-safe
palette of Okabe and Ito ("Color Universal Design", 2008), and a marker, line style or hatch for every colour,
so that a black-and-white copy is equally readable. Only Figure objects are used: matplotlib.pyplot, with
its global state and its need for a display, is never imported.
"""

from __future__ import annotations

import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from rotnet_fast.files import ensure_folder, resolve_path, write_atomically

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
"""In the order of use."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p")
"""In the order of use; their number is coprime to that of the colours, so that pairs repeat late."""

LINE_STYLES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx")
GREY = "#595959"

CLASS_COLOURS = (
    "#332288",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#AA4499",
    "#999933",
    "#44AA99",
    "#882255",
    "#DDCC77",
    "#000000",
)
"""Ten colours for classes: Paul Tol's muted scheme, made for colour-blind readers, and black."""

WIDTH = 7.0
"""Width in inches of a figure as wide as a page's text, for galleries of images."""

PAGE = 5.2
"""Width in inches of all other figures, whose text of 8 points is legible across a phone, too."""

DENSITY = "magma"
"""Perceptually uniform colormap for maps."""

COUNTS = LinearSegmentedColormap.from_list("counts", ["#FFFFFF", "#CFE3F1", "#56A3D0", BLUE, "#002B4D"])
"""From white, for none, to dark, for counts."""

RIGHT, WRONG = "✓", "✗"

_SETTINGS: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that all machines draw the same
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 10,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "svg.hashsalt": "rotnet_fast",  # ids in the file depend on its content alone
    "svg.fonttype": "path",
    "text.parse_math": False,  # class names may hold a dollar sign
}

P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """Return a context for drawing and saving figures, which restores matplotlib's settings at its end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore a user's matplotlibrc
        matplotlib.rcParams.update(_SETTINGS)
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function to draw in the common style."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return in_style


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Create an empty figure, sized in inches, whose parts are laid out without overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> list[Path]:
    """Save a figure as PNG (200 dots per inch) and SVG.

    With the same matplotlib, the same figure gives the same bytes, without dates and random ids.

    Args:
        figure: the figure.
        path: path without a suffix; its folder is created if necessary.

    Returns:
        The paths of the written files.

    Raises:
        CannotWriteError: the disk is full, the folder is read-only, ...
    """
    path = resolve_path(path.parent) / path.name
    written = []
    for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
        buffer = io.BytesIO()
        with style():
            figure.savefig(buffer, format=suffix[1:], dpi=200, metadata=metadata)
        figure.set_layout_engine("none")  # laid out once for all formats: it takes as long as drawing
        target = path.with_name(path.name + suffix)
        ensure_folder(target.parent)
        content = buffer.getvalue()
        write_atomically(target, settled(content) if suffix == ".svg" else content)
        written.append(target)
    return written


def settled(svg: bytes) -> bytes:
    """Remove from an SVG what differs between runs because the layout solver's last bits do.

    Coordinates lose their last three of six decimals, far below what can be seen. matplotlib names clip paths
    by a hash of their exact coordinates; here, they are numbered.
    """
    svg = re.sub(rb"(?<![\d.])(\d*[1-9]\d*\.\d{3})\d{3}(?!\d)", rb"\1", svg)  # not of scales, below 1
    names = re.findall(rb'<clipPath id="(p[0-9a-f]+)"', svg)
    numbers = {name: b"clip%d" % number for number, name in enumerate(names)}
    return re.sub(
        rb'(?<=<clipPath id=")p[0-9a-f]+|(?<=url\(#)p[0-9a-f]+',
        lambda found: numbers.get(found.group(), found.group()),
        svg,
    )


def title_of(figure: Figure | SubFigure, text: str) -> None:
    """Put a title above a figure, wrapped to its width."""
    inches = figure.bbox.width / figure.dpi
    # A number stays in one line with its unit.
    lines = wrapped(text.replace(" %", "\N{NO-BREAK SPACE}%"), int(inches * TITLE_CHARACTERS))
    figure.suptitle(lines, x=0.02, ha="left", weight="bold", fontsize=9)


TITLE_CHARACTERS = 12.5
"""Characters of a bold title of 9 points that take an inch, at most."""


def wrapped(text: str, width: int) -> str:
    """Break a text into lines of at most so many characters; longer words are broken, too."""
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in text.splitlines())


def shortened(text: str, most: int) -> str:
    """Cut a name that has more characters, and mark the cut by an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def show_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    """Draw an image uint8 [H,W,C] without axes: in grey for one or two channels, else the first three."""
    if image.shape[2] < 3:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image[..., :3])
    bare(axes)


def bare(axes: Axes) -> None:
    """Remove ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def frame(axes: Axes, is_right: bool) -> None:
    """Frame an image: thin if something is right, thick and in another colour if it is wrong."""
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(GREEN if is_right else VERMILION)
        spine.set_linewidth(1.0 if is_right else 3.0)


def marked(text: str, is_right: bool) -> str:
    """Prefix a text with a tick or a cross."""
    return f"{RIGHT if is_right else WRONG} {text}"
