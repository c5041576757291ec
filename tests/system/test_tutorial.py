"""The tutorial's notebook runs from its first cell to its last, and gives the outputs that it shows."""

from __future__ import annotations

import re

import execute_tutorial
import nbformat
import pytest
from nbformat import NotebookNode


def stored_cells() -> list[NotebookNode]:
    return [cell for cell in read_cells(nbformat.read(execute_tutorial.PAGE, as_version=4)) if cell.outputs]


def read_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: NotebookNode) -> list[str]:
    """What a cell gave, without what differs between machines: numbers, number formats, padding."""
    found = []
    for output in cell.outputs:
        text = output.text if output.output_type == "stream" else " ".join(sorted(output.data))
        text = re.sub(r"bf16|fp32", "FORMAT", text)
        text = re.sub(r"threads?", "THREADS", text)
        text = re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", "#", text)
        found.append(f"{output.get('name', '')} {re.sub(r'[ -]+', ' ', text)}")
    return found


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The notebook, executed again on one thread, which other programs do not slow down as much."""
    return execute_tutorial.executed(tmp_path_factory.mktemp("tutorial"), OMP_NUM_THREADS="1")


@pytest.mark.long
def test_the_notebook_gives_the_outputs_that_it_shows(executed: NotebookNode) -> None:
    again = [cell for cell in read_cells(executed) if cell.outputs]
    assert [cell.source for cell in again] == [cell.source for cell in stored_cells()]
    assert [shown(cell) for cell in again] == [shown(cell) for cell in stored_cells()]


@pytest.mark.parametrize("which", [pytest.param("executed", marks=pytest.mark.long), "stored"])
def test_the_features_beat_those_of_an_untrained_network(which: str, request: pytest.FixtureRequest) -> None:
    cells = stored_cells() if which == "stored" else read_cells(request.getfixturevalue("executed"))
    text = "\n".join(
        output.text for cell in cells for output in cell.outputs if output.output_type == "stream"
    )
    assert float(re.findall(r"^rotation accuracy ([\d.]+) %", text, re.MULTILINE)[0]) >= 95
    conv = dict(re.findall(r"^(frozen|random-init) .* conv .* ([\d.]+)$", text, re.MULTILINE))
    assert float(conv["frozen"]) >= float(conv["random-init"]) + 5
    assert float(re.findall(r"the same digit for ([\d.]+)%", text)[0]) >= 90


def test_a_line_about_the_machine_parts_no_output() -> None:
    def stream(name: str, text: str) -> NotebookNode:
        return nbformat.v4.new_output("stream", name=name, text=text)

    notice = "WARNING: training steps take 3 times their CPU time\n"
    assert execute_tutorial.OF_THE_MACHINE.sub("", notice) == ""
    parts = [stream("stdout", "epoch 1/9: a\nepoch 3/9: b\n"), stream("stderr", notice)]
    parts += [stream("stdout", "epoch 4/9: c\nepoch 9/9: d\n")]
    expected = [stream("stdout", "epoch 1/9: a\n...\nepoch 9/9: d\n")]
    assert execute_tutorial.stored(parts) == expected


def test_the_stored_notebook_is_small_and_of_no_machine() -> None:
    text = execute_tutorial.PAGE.read_text(encoding="utf-8")
    assert len(text) < 500_000
    cells = stored_cells()
    pictures = [cell for cell in cells if "image/png" in str(cell.outputs)]
    assert len(pictures) == 5
    for cell in pictures:
        assert len(cell.metadata["mystnb"]["image"]["alt"]) > 40
    for cell in cells:
        for output in cell.outputs:
            assert output.get("name") != "stderr"
            assert (
                re.search(r"/(home|root|tmp|Users)/|warning", str(output.get("text")), re.IGNORECASE) is None
            )


def test_epochs_in_the_middle_are_left_out() -> None:
    lines = [f"epoch {number}/12: loss 1" for number in range(1, 13)]
    text = "\n".join(["data", *lines, "done", ""])
    halves = [nbformat.v4.new_output("stream", text=part) for part in (text[:50], text[50:])]
    (output,) = execute_tutorial.stored(halves)
    assert output.text.splitlines() == ["data", *lines[:2], "...", lines[-1], "done"]


def test_what_differs_between_machines_is_not_compared() -> None:
    def cell(text: str) -> NotebookNode:
        return nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text=text)])

    assert shown(cell("bf16: loss 5.1e-05,  9 images/s")) == shown(cell("fp32: loss 0.02, 10.5 images/s"))
    assert shown(cell("train loss 1")) != shown(cell("test loss 1"))


def test_lines_that_only_a_busy_machine_prints_are_left_out() -> None:
    busy = "WARNING: training steps take 7 times their CPU time\n"
    status = "epoch   1/8  42% ###      5/12  6 img/s\n"
    texts = [("stderr", busy), ("stdout", f"data\n{status}epoch 1/8: loss 1\n")]
    outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts]
    (kept,) = execute_tutorial.stored(outputs)
    assert kept.text == "data\nepoch 1/8: loss 1\n"
