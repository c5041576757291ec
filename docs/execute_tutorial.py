"""Execute docs/tutorial.ipynb, and store it with its outputs: ``python docs/execute_tutorial.py``."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

PAGE = Path(__file__).parent / "tutorial.ipynb"


OF_THE_MACHINE = re.compile(
    r"^(?:WARNING: training steps take .*|epoch +\d+/\d+ +\d+% .*|about .* on this CPU.*)\n", re.MULTILINE
)
"""Lines that only a slow or busy machine prints."""


def executed(folder: Path, **variables: str) -> NotebookNode:
    """Execute the notebook in an empty folder, with this Python and this package.

    Args:
        folder: where the notebook runs, and leaves its files.
        variables: environment variables to set.

    Returns:
        The notebook with its outputs, as it is stored.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(PAGE.parents[1]),
        "IPYTHONDIR": str(folder / ".ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **variables,
    }
    notebook = nbformat.read(PAGE, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    notebook.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = stored(cell.outputs)
    return notebook


def merged(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs with consecutive texts of one stream in one, and without empty ones."""
    kept: list[NotebookNode] = []
    for output in outputs:
        is_text = output.output_type == "stream"
        if is_text and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        elif not is_text or output.text:
            kept.append(output)
    return kept


def stored(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell: one text, without the epochs in the middle, and small pictures."""
    kept = merged(outputs)
    for output in kept:
        if output.output_type == "stream":
            output.text = OF_THE_MACHINE.sub("", output.text)
    kept = merged(kept)  # such a line may have parted others
    for output in kept:
        if output.output_type == "stream":
            epochs = r"(?:^epoch (?!1/|2/|(\d+)/\1:).*\n)+"
            output.text = re.sub(epochs, "...\n", output.text, flags=re.MULTILINE)
        elif "image/png" in output.data:
            output.data["image/png"] = smaller(output.data["image/png"])
    return kept


def smaller(picture: str) -> str:
    """A PNG in base64 with 64 colours, which is a third as long."""
    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(64).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), PAGE)
