"""The report says every number of the JSON files, says what has not been run, and invents nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic_study import copy_study, packed_correct, remove_cells, settings_of, write_study

from rotnet_fast import paper
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.protocols import svm
from rotnet_fast.report import report as main
from rotnet_fast.study.pages.document import Table
from rotnet_fast.study.pages.overview import what_was_run
from rotnet_fast.study.pages.report import update_readme, write_report
from rotnet_fast.study.pages.tables import of_table3, value, with_few_labels
from rotnet_fast.study.plan import OTHER_PRETEXT_TASKS
from rotnet_fast.study.settings import StudyPreset, study_settings
from rotnet_fast.study.store import cell_path
from rotnet_fast.study.summary import Study, load_study

VOID_ELEMENTS = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete study of CIFAR-10 with two seeds, and its report."""
    folder = write_study(tmp_path_factory.mktemp("complete") / "study", settings_of(), seeds=2)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scaled-down study of other images with one seed, and its report."""
    settings = settings_of("folder", "CIFAR-10 (JPEG re-encoded)", "cpu", 0.5)
    folder = write_study(tmp_path_factory.mktemp("one") / "study", settings, seeds=1)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, complete: Path) -> Path:
    """A study of which nothing has been run, and its report."""
    folder = copy_study(complete, tmp_path_factory.mktemp("empty") / "study")
    remove_cells(folder)
    write_report(folder)
    return folder


def markdown(folder: Path) -> str:
    return (folder / "RESULTS.md").read_text(encoding="utf-8")


def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


def section(text: str, beginning: str) -> str:
    found = [part for part in text.split("\n## ") if part.startswith(beginning)]
    assert len(found) == 1
    return found[0]


def rows(text: str, first_cell: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {first_cell}")]


def test_every_mean_and_deviation_is_in_both_formats(complete: Path) -> None:
    study = load_study(complete)
    for number in study.numbers.values():
        expected = f"{number.mean:.2f}"
        if number.deviation is not None:
            expected += f" ± {number.deviation:.2f}"
        assert expected in markdown(complete), number.entry
        assert expected in page(complete), number.entry


def test_every_number_of_the_flat_tables_is_followed_by_n_published_and_difference(complete: Path) -> None:
    number = load_study(complete).number("table1", "4-conv2")
    assert number.mean is not None
    ours = f"{number.mean:.2f} ± {number.deviation:.2f} | 2 | 89.06 | {number.mean - 89.06:+.2f}"
    assert f"| 4 blocks, conv2 | {ours} | 100+100 | 0.01 | 0.00 | M1 |" in markdown(complete)


def test_counts_of_the_tables(complete: Path) -> None:
    text = markdown(complete)
    flat = section(text, "Table 1").partition("number by number")[2]
    assert len(rows(flat, "3 blocks")) + len(rows(flat, "4 blocks")) + len(rows(flat, "5 blocks")) == 12
    assert len(rows(section(text, "Table 2"), "{")) == 4
    flat = section(text, "Figure 5b").partition("number by number")[2]
    assert len(rows(flat, "RotNet + conv,")) + len(rows(flat, "supervised,")) == 10
    table3, _, few = section(text, "Table 3").partition("**Features with few labels, number by number")
    assert len(rows(few, "Jigsaw + conv,")) == len(rows(few, "Scattering + perceptron")) == 3
    numbers = of_table3(load_study(complete))
    for number in numbers:
        assert rows(table3, number.entry.title), number.entry.title
    assert len(numbers) == 23
    assert len([line for line in table3.splitlines() if "quoted from the paper" in line]) == 3
    assert len([line for line in table3.splitlines() if "classical row, ours" in line]) == 3
    assert len([line for line in table3.splitlines() if "(another pretext task, ours)" in line]) == 6
    assert len([line for line in table3.splitlines() if "(fixed features, ours" in line]) == 4
    assert "Rows marked as another pretext task, ours, are of RotNet's network" in table3
    assert all(facts.differences in table3 for facts in OTHER_PRETEXT_TASKS.values())
    assert f"of fewer than {svm.ENOUGH:,} images" in table3
    assert f"one label, C is {svm.PENALTIES[len(svm.PENALTIES) // 2]:g}. It came out as 1e-06 to" in table3


@pytest.mark.usefixtures("unrendered")
def test_a_machine_that_stopped_short_is_counted(complete: Path, tmp_path: Path) -> None:
    folder = copy_study(complete, tmp_path / "study")
    assert "stopped short" not in markdown(complete)
    cell = load_study(folder).number("table3", "rotnet-svm").entry.cells[0]
    path = cell_path(folder, cell.key)
    path.write_text(path.read_text().replace('"has_converged": true', '"has_converged": false'))
    write_report(folder)
    assert "1 machine stopped short of the minimum." in markdown(folder)


def test_features_with_few_labels_have_a_column_for_each_number(complete: Path) -> None:
    study = load_study(complete)
    text = section(markdown(complete), "Table 3").partition("Features with few labels")[2]
    lines = text.partition("Distance to the supervised")[0].splitlines()
    table = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if line.startswith("| ")}
    assert [cell.strip() for cell in table["method"]] == ["20", "100", "400"]
    for title, item, name in (
        ("RotNet + conv", "figure5b", "rotnet"),
        ("Supervised NIN", "figure5b", "supervised"),
        ("RotNet + SVM", "table3", "rotnet-svm"),
        ("Scattering + conv", "table3", "scattering-conv"),
    ):
        expected = [value(study.number(item, f"{name}-{count}")) for count in (20, 100, 400)]
        assert [cell.strip() for cell in table[title]] == expected


def test_quoted_methods_have_the_papers_number_and_none_of_ours(complete: Path) -> None:
    for name, accuracy in paper.OTHER_METHODS.items():
        quoted = f"| {name} (quoted from the paper, not run here; {paper.LEARNED_FROM[name]}) |  |  | "
        row = f"{quoted}{accuracy:.2f} |  |  |  |"
        assert (row in markdown(complete)) == (name != "Scattering")  # which is measured, too
    for part in ("Main numbers", "Table 3"):
        text = section(markdown(complete), part)
        ours = next(row for row in rows(text, "Scattering + perceptron") if "| 84.70 |" in row)
        assert f"published: {paper.LEARNED_FROM['Scattering']})" in ours
    text = section(markdown(complete), "Main numbers")
    assert len([line for line in text.splitlines() if "(quoted; " in line]) == 3


def test_one_seed_has_no_deviation(one_seed: Path) -> None:
    assert "±" not in markdown(one_seed)
    assert "±" not in page(one_seed)


def test_other_images_are_named_and_get_a_reference_without_difference(one_seed: Path) -> None:
    for text in (markdown(one_seed), page(one_seed)):
        assert "CIFAR-10 (JPEG re-encoded)" in text
        assert "CIFAR-10 reference" in text
        assert "published" not in section(markdown(one_seed), "Table 1").lower()
    assert "| difference |" not in section(markdown(one_seed), "Table 1")


@pytest.mark.parametrize(
    ("name", "preset", "scale", "expected"),
    [
        ("cifar10", "paper", 1.0, True),
        ("cifar10", "official", 1.0, True),
        ("folder", "paper", 1.0, True),  # CIFAR-10's classes and numbers of images, re-encoded
        ("cifar10", "cpu", 1.0, False),  # half the width
        ("cifar10", "paper", 0.5, False),
    ],
)
def test_differences_are_claimed_for_the_same_thing_only(
    name: str, preset: str, scale: float, expected: bool
) -> None:
    settings = settings_of(name, "Images", preset, scale)  # type: ignore[arg-type]
    assert Study(Path(), settings, 1, (), {}).comparable is expected


@pytest.mark.parametrize(
    "changes", [{"limit_train": 49_000}, {"classes": ("cat", "dog")}, {"train_images": 9}]
)
def test_other_folders_and_parts_of_cifar_10_are_not_compared(changes: dict[str, Any]) -> None:
    settings = settings_of("folder", "Images", "paper", 1.0)
    settings = replace(settings, data=replace(settings.data, **changes))
    assert not Study(Path(), settings, 1, (), {}).comparable


def test_nothing_run_is_said_and_never_invented(empty: Path) -> None:
    for text in (markdown(empty), page(empty)):
        assert "No cell has been run yet." in text
        said = text.partition("Nothing has been run yet of: ")[2].partition("\n")[0]
        for name in ("Main numbers", "Table 1", "Table 2", "Table 3", "Figure 5a", "Figure 5b", "Ablations"):
            assert name in said
    assert re.findall(r"^## (.+)$", markdown(empty), re.MULTILINE)[0] == "What was run"
    assert not (empty / "figures" / "figure5a.png").exists()


@pytest.mark.usefixtures("unrendered")
def test_half_a_study_shows_its_half(tmp_path: Path, complete: Path) -> None:
    for keep in (1, 10, 20, 40, 80):
        folder = copy_study(complete, tmp_path / str(keep))
        remove_cells(folder, keep)
        write_report(folder)
        assert re.search("not been run|Nothing has been run", markdown(folder))
        assert not re.search(r"^\|[^|]*\| not run \| 0 \|[^|]*\|( - \|)*$", markdown(folder), re.MULTILINE)
        for number in load_study(folder).numbers.values():
            if number.mean is not None:
                assert f"{number.mean:.2f}" in page(folder)


@pytest.mark.usefixtures("unrendered")
def test_the_smallest_study_has_all_its_numbers(tmp_path: Path) -> None:
    data = replace(settings_of("digits", "digits").data, train_images=80, test_images=360, smallest_class=8)
    folder = write_study(tmp_path / "study", study_settings("quickstart", 0.05, data, "fp32"), seeds=1)
    write_report(folder)
    assert not re.search("not run \\||not been run|Nothing has been run", markdown(folder))
    assert "RotNet &gt; supervised with 1, 2 and 3 labels per class" in markdown(folder)
    for text in (markdown(folder), page(folder)):
        before, _, after = text.partition("A smoke test: so short that its accuracies mean nothing.")
        assert "ordering" in after
        assert "ordering" not in before.partition("<body")[2]  # it stands above all numbers
    for number in load_study(folder).numbers.values():
        assert f"{number.mean:.2f}" in page(folder)


@pytest.mark.usefixtures("unrendered")
def test_a_study_of_few_labels_says_so_first_and_is_no_smoke_test(tmp_path: Path) -> None:
    data = replace(
        settings_of("digits", "digits").data, train_images=1437, test_images=360, smallest_class=138
    )
    folder = write_study(tmp_path / "study", study_settings("demo", 1.0, data, "fp32"), seeds=1)
    write_report(folder)
    for text in (markdown(folder), page(folder)):
        assert "smoke test" not in text
        assert "only 1 labelled image of each class, except in Figure 5b" in text.partition("ordering")[0]
    assert "| labels | 1 of each class, except in Figure 5b |" in markdown(folder)


def test_a_study_of_all_labels_says_nothing_of_few(complete: Path) -> None:
    assert "| labels | all |" in markdown(complete)
    assert "Few labels" not in markdown(complete)


@pytest.mark.usefixtures("unrendered")
def test_one_of_two_seeds_is_one_value(tmp_path: Path, complete: Path) -> None:
    folder = copy_study(complete, tmp_path / "study")
    cells = load_study(folder).entry("table3", "rotnet-conv").cells
    (folder / "cells" / f"{cells[1].key}.json").unlink()
    write_report(folder)
    mean = load_study(folder).number("table3", "rotnet-conv").mean
    assert f"| RotNet + conv | {mean:.2f} | 1 | 91.16 |" in markdown(folder)


@pytest.mark.usefixtures("unrendered")
def test_the_headline_may_have_more_seeds_than_the_rest(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", settings_of(), seeds=1, headline=3)
    write_report(folder)
    text, study = markdown(folder), load_study(folder)
    assert "scale 1, seed 0; of the main numbers seeds 0 to 2. The study is complete." in text
    conv, flipped = study.number("table3", "rotnet-conv"), study.number("ablations", "flip-after-rotation")
    assert (conv.n, flipped.n) == (3, 1)
    assert f"| RotNet + conv | {conv.mean:.2f} ± {conv.deviation:.2f} | 3 | 91.16 |" in text
    beside = f"{flipped.mean:.2f} | 1 | {conv.by_seed[0]:.2f} | {flipped.mean - conv.by_seed[0]:+.2f} |"
    assert beside in text.replace("\u2212", "-")  # seed 0 of both, not one seed against the mean of three


def test_regenerating_gives_the_same_bytes(tmp_path: Path, one_seed: Path) -> None:
    copy = copy_study(one_seed, tmp_path / "elsewhere")
    again = write_report(copy)
    assert len(again) > 20
    for path in again:
        assert path.read_bytes() == (one_seed / path.relative_to(copy)).read_bytes(), path


def test_every_figure_that_is_mentioned_exists_and_the_other_way_round(complete: Path) -> None:
    mentioned = set(re.findall(r"\]\(figures/(.*)\.png\)", markdown(complete)))
    assert mentioned == {path.stem for path in (complete / "figures").glob("*.png")}
    assert mentioned == {path.stem for path in (complete / "figures").glob("*.svg")}
    assert page(complete).count("<img ") == len(mentioned)


class Checker(HTMLParser):
    """Elements that are closed in order, what they point to, and their texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.anchors: list[str] = []
        self.alternatives: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"{tag} has an attribute twice"
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.anchors += [value or "" for name, value in attrs if name == "id"]
        if tag == "img":
            self.alternatives.append(values.get("alt"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(params=["complete", "one_seed", "empty"])
def checked(request: pytest.FixtureRequest) -> tuple[Checker, str]:
    text = page(request.getfixturevalue(request.param))
    checker = Checker()
    checker.feed(text)
    checker.close()
    return checker, text


def test_pictures_and_verdicts_come_first_and_the_rest_is_folded(complete: Path) -> None:
    before, *folded = page(complete).split("<details>")
    assert before.count("<img ") == 3
    assert re.findall(r'<img [^>]*alt="(\w+ chart)', before) == ["Bar chart", "Line chart", "Line chart"]
    for claim in ("4 blocks: conv2 &gt; conv3 &gt; conv1 &gt; conv4", "Rotation and object accuracy rise"):
        assert claim in before
    assert len(folded) == len(re.findall(r"^## ", markdown(complete), re.M)) > 10
    for part in folded:
        assert part.startswith("\n<summary><h2>")
        assert part.count("</details>") == 1
    assert not re.search(r"<(table|img|pre)\b", page(complete).rpartition("</details>")[2])


def test_pictures_at_the_top_are_only_once_in_the_page(complete: Path) -> None:
    sources = re.findall(r'<img src="([^"]*)"', page(complete))
    assert len(sources) == len(set(sources))
    assert page(complete).count("At the top of this page: ") == 3


def test_nothing_is_wider_than_a_phone(checked: tuple[Checker, str]) -> None:
    """Pictures shrink with the page, and what cannot shrink scrolls in a box of its own."""
    _, text = checked
    assert "figure img { display: block; max-width: 100%; height: auto; }" in text
    assert ".scroll { max-width: 100%; overflow-x: auto; }" in text
    assert re.search(r"pre \{[^}]*overflow-x: auto", text)
    assert text.count("<table") == len(re.findall(r'<div class="scroll"[^>]*>\n<table', text))
    assert "width=device-width" in text
    body = text.partition("<body>")[2]
    assert not re.search(r"""(style|width)=["']""", body)


def test_every_column_of_every_table_has_a_name(checked: tuple[Checker, str]) -> None:
    _, text = checked
    heads = re.findall(r"<thead>(.*?)</thead>", text, re.S)
    assert heads
    for head in heads:
        names = re.findall(r"<th[^>]*>(.*?)</th>", head)
        assert all(names), names
        assert len(names) == len(set(names)), names


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("preset", ["paper", "slides"])
def test_no_published_number_stands_beside_other_images(preset: StudyPreset, tmp_path: Path) -> None:
    classes = ("ant", "bee", "cicada")
    data = settings_of("folder", "Insects", classes=classes).data
    folder = write_study(tmp_path / "study", study_settings(preset, 1.0, data, "bf16"), seeds=1)
    write_report(folder)
    for text in (markdown(folder), page(folder)):
        assert "CIFAR-10 reference" not in text
        assert "quoted" not in text
        assert not re.search(r"\b(92\.80|91\.16|72\.50|84\.70|90\.02|92\.06)[ )]", text)
    headers = "\n".join(line for line in markdown(folder).splitlines() if "ours, %" in line)
    assert "published" not in headers
    assert "difference" not in headers.replace("| faithful, % | difference", "")
    assert "in the paper |" not in markdown(folder)


def test_the_page_is_well_formed_and_needs_nothing_else(checked: tuple[Checker, str]) -> None:
    checker, text = checked
    assert checker.open == []
    assert all(target.startswith(("#", "data:image/")) for target in checker.targets)
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_links_lead_somewhere_and_pictures_have_words(checked: tuple[Checker, str]) -> None:
    checker, _ = checked
    assert len(checker.anchors) == len(set(checker.anchors))
    assert {target[1:] for target in checker.targets if target.startswith("#")} <= set(checker.anchors)
    assert all(text and len(text) > 20 for text in checker.alternatives)


@pytest.mark.usefixtures("unrendered")
def test_a_name_with_markup_stays_a_name(tmp_path: Path) -> None:
    settings = settings_of("folder", "<b>*my*|`set`</b>")
    folder = write_study(tmp_path / "study", settings, seeds=1)
    remove_cells(folder)
    write_report(folder)
    assert "&lt;b&gt;*my*|&#x27;set&#x27;&lt;/b&gt;" in page(folder)
    assert "<b>" not in page(folder)
    assert r"&lt;b&gt;\*my\*\|'set'&lt;/b&gt;" in markdown(folder)


def test_a_folder_without_a_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"study\.json cannot be read .* give a folder that rotnet_fast"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no study"),
        ('{"format": 9, "settings": {}, "seeds": 1}', "use the version that wrote it"),
        ('{"format": 1, "settings": {}, "seeds": 1}', "another version"),
        ('{"format": 1, "settings": 3, "seeds": 1}', "another version"),
    ],
)
def test_a_foreign_study_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(ArgumentError, match=message):
        load_study(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "key": "0" * 16}),
        lambda text: json.dumps({**json.loads(text), "result": None}),
        lambda text: json.dumps({**json.loads(text), "environment": {}}),
        lambda text: json.dumps({**json.loads(text), "result": {"accuracy": "high"}}),
        lambda text: json.dumps({**json.loads(text), "result": {"accuracy": float("nan")}}),
    ],
)
def test_a_damaged_cell_is_named_with_its_remedy(tmp_path: Path, complete: Path, damage: object) -> None:
    folder = copy_study(complete, tmp_path / "study")
    cell = load_study(folder).entry("table3", "rotnet-conv").cells[0]
    path = folder / "cells" / f"{cell.key}.json"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"{cell.key}\.json (cannot|holds no|belongs).* delete it"):
        write_report(folder)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("item", "name", "result"),
    [
        ("figure3", "attention", {"rotation": {"layers": []}}),
        ("extras", "rotations", {}),
        ("extras", "embedding", {"labels": {"dtype": "uint8", "shape": [1], "base64": "?"}}),
        (
            "table3",
            "supervised",
            {"accuracy": 90.0, "confusion": [[1]], "correct": packed_correct(90.0, 10_000, 0)},
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_names_its_cell(
    tmp_path: Path, complete: Path, item: str, name: str, result: object
) -> None:
    folder = copy_study(complete, tmp_path / "study")
    cell = load_study(folder).entry(item, name).cells[0]
    path = folder / "cells" / f"{cell.key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": result}))
    with pytest.raises(DataError, match=f"cannot be drawn .* delete .*{cell.key}"):
        write_report(folder)


README = "# Title\n\n<!-- accuracy: begin -->\nold\n<!-- accuracy: end -->\n\nMore.\n"


@pytest.mark.usefixtures("unrendered")
def test_the_command_writes_the_report_and_the_readmes_table(
    tmp_path: Path, one_seed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_study(one_seed, tmp_path / "study")
    (tmp_path / "README.md").write_text(README)
    main([str(folder), "--readme", str(tmp_path / "README.md")])
    printed, told = capsys.readouterr()
    assert told.splitlines()[0] == f"writing the report of {folder} ..."
    assert f"writing {folder / 'index.html'}" in told.splitlines()
    assert str(folder / "RESULTS.md") in printed
    assert str(folder / "index.html") in printed
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- accuracy: begin -->\n|")
    assert text.endswith("<!-- accuracy: end -->\n\nMore.\n")
    assert "old" not in text
    for number in of_table3(load_study(folder)):
        note = f" (published: {paper.LEARNED_FROM[number.entry.repeats]})" if number.entry.repeats else ""
        assert f"| {number.entry.title}{note} | {number.mean:.2f} | 1 |" in text
    with_few = text.partition("With few labels per class, in %:")[2]
    numbers = [
        number for number in with_few_labels(load_study(folder)) if number.entry.series == "jigsaw-svm"
    ]
    assert "| ".join(["", "Jigsaw + SVM ", *(f"{number.mean:.2f} " for number in numbers)]) in with_few
    for said in ("CIFAR-10 (JPEG re-encoded)", "scale 0.5", "AMD EPYC", "seed 0", "`study`", "reference"):
        assert said in text
    main([str(folder), "--readme", str(tmp_path / "README.md")])
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("study", "page", "source"),
    [
        ("study", "README.md", "[`study`](study/RESULTS.md)"),
        ("results/my study", "docs/results.md", "[`my study`](../results/my%20study/RESULTS.md)"),
        ("elsewhere/study", "project/docs/results.md", "`study`"),
    ],
)
def test_a_page_links_to_the_report_of_its_own_project(
    tmp_path: Path, one_seed: Path, study: str, page: str, source: str
) -> None:
    (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / page).write_text(README)
    (tmp_path / study).parent.mkdir(exist_ok=True)
    update_readme(copy_study(one_seed, tmp_path / study), tmp_path / page)
    assert f". From {source}.\n<!--" in (tmp_path / page).read_text()


def test_the_rest_of_a_page_keeps_its_line_ends(tmp_path: Path, one_seed: Path) -> None:
    page = tmp_path / "README.md"
    page.write_bytes(README.replace("\n", "\r\n").encode())
    update_readme(copy_study(one_seed, tmp_path / "study"), page)
    content = page.read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n")
    assert content.endswith(README.splitlines()[-1].encode() + b"\r\n")


def test_the_rate_of_a_machine_is_the_median_of_its_pretrainings(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path / "study", settings_of(), seeds=2))
    for cell in study.entry("extras", "rotation-accuracy-0-90-180-270").cells:
        study.files[cell.key]["result"]["images_per_second"] = 100.0 + 200.0 * cell.settings["seed"]
    _, machines, *_ = (block for block in what_was_run(study).blocks if isinstance(block, Table))
    assert [row[-1] for row in machines.rows] == ["200"]


def test_machines_that_differ_in_their_kernel_are_told_apart(tmp_path: Path, one_seed: Path) -> None:
    folder = copy_study(one_seed, tmp_path / "study")
    path = next((folder / "cells").iterdir())
    content = json.loads(path.read_text())
    content["environment"]["kernel"] = "another"
    path.write_text(json.dumps(content))
    (tmp_path / "README.md").write_text(README)
    update_readme(folder, tmp_path / "README.md")
    (machines,) = re.findall(r"Measured on (.*)\. From ", (tmp_path / "README.md").read_text())
    one, other = re.findall(r"M\d: ([^;]*)", machines)
    assert one != other


@pytest.mark.usefixtures("unrendered")
def test_held_out_training_images_are_not_called_test_images_without_a_word(tmp_path: Path) -> None:
    settings = settings_of()
    settings = replace(settings, data=replace(settings.data, validation=settings.data.test_images))
    folder = write_study(tmp_path / "study", settings, seeds=1)
    write_report(folder)
    text = markdown(folder)
    assert "they are training images that were held out (validation)" in text
    assert f"{settings.data.test_images:,} validation images" in text
    assert f"{settings.data.test_images:,} test images" not in text


@pytest.mark.usefixtures("unrendered")
def test_a_partial_study_counts_the_networks_that_others_need(tmp_path: Path, one_seed: Path) -> None:
    folder = copy_study(one_seed, tmp_path / "study")
    count = len(list((folder / "cells").iterdir()))
    next((folder / "cells").iterdir()).unlink()
    write_report(folder)
    assert f"{count - 1} of {count} cells have been run" in markdown(folder)


def test_a_readme_without_markers_is_refused(tmp_path: Path, one_seed: Path) -> None:
    (tmp_path / "README.md").write_text("# Title\n")
    folder = copy_study(one_seed, tmp_path / "study")
    with pytest.raises(ArgumentError, match=r"accuracy: begin .* put them where the table belongs"):
        main([str(folder), "--readme", str(tmp_path / "README.md")])
    with pytest.raises(ArgumentError, match="cannot be read"):
        main([str(folder), "--readme", str(tmp_path / "missing.md")])


def test_a_readme_takes_one_study(tmp_path: Path, one_seed: Path) -> None:
    with pytest.raises(ArgumentError, match="one study"):
        main([str(one_seed), str(one_seed), "--readme", str(tmp_path / "README.md")])


def test_a_readme_is_not_filled_with_nothing(tmp_path: Path, empty: Path) -> None:
    (tmp_path / "README.md").write_text(README)
    with pytest.raises(ArgumentError, match="no result yet"):
        main([str(empty), "--readme", str(tmp_path / "README.md")])
    assert (tmp_path / "README.md").read_text() == README


def test_the_report_does_not_need_torch(tmp_path: Path, one_seed: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from rotnet_fast.study.pages.report import update_readme, write_report\n"
        "write_report(Path(sys.argv[1]))"
    )
    folder = copy_study(one_seed, tmp_path / "study")
    remove_cells(folder, 4)
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_the_cost_of_a_row_includes_the_pretraining_that_it_starts_from(complete: Path) -> None:
    study = load_study(complete)
    hours, work = study.cost(study.entry("table3", "supervised")) or (0.0, 0.0)
    assert hours == pytest.approx(12.5 / 3600)
    assert work == pytest.approx(2e9)
    both = study.cost(study.entry("table3", "rotnet-conv")) or (0.0, 0.0)
    assert both == pytest.approx((2 * hours, 2 * work))
    assert study.cost(replace(study.entry("table3", "supervised"), cells=())) is None
