"""Figures of the numbers and arrays that `rotnet_fast.analysis` and studies store; nothing is computed here.

Every function takes plain dictionaries or numbers and returns a matplotlib Figure, without torch or a data
set. `rotnet_fast.plots.style.save` writes a figure.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def _import_matplotlib() -> None:
    """Import matplotlib regardless of MPLBACKEND.

    A notebook hands its own backend on to the programs that it starts, and matplotlib does not import where a
    backend is not installed. Figures are drawn without one; a backend that there is stays chosen for others.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


_import_matplotlib()
