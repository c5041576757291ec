"""Every figure of a study is legible and says what it shows, whatever the data and however much was run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from plot_inputs import LONG, check_legible, texts
from synthetic_study import CLASSES, copy_study, packed_correct, remove_cells, settings_of, write_study

from rotnet_fast import paper
from rotnet_fast.plots.bars import Bar
from rotnet_fast.protocols.result import points
from rotnet_fast.study.pages import classes, figures, findings
from rotnet_fast.study.pages.ablations import ablated_pairs
from rotnet_fast.study.pages.classes import per_class
from rotnet_fast.study.pages.document import Table
from rotnet_fast.study.pages.figures import FIGURES
from rotnet_fast.study.pages.tables import mean_difference
from rotnet_fast.study.plan import Entry
from rotnet_fast.study.settings import study_settings
from rotnet_fast.study.summary import Study, load_study
from rotnet_fast.verdict import wilson

SHAPES = {
    "two classes": (("ant", "bee"), 1),
    "ten classes, three seeds": (CLASSES, 3),
    "a hundred classes with long names": (tuple(LONG), 1),
}


@pytest.fixture(scope="module", params=SHAPES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    classes, seeds = SHAPES[request.param]
    settings = settings_of("folder", "Images", "paper", 1.0, classes)
    return load_study(write_study(tmp_path_factory.mktemp("study") / "study", settings, seeds))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_legible_whatever_the_data(name: str, study: Study) -> None:
    figure = FIGURES[name][0](study)
    assert figure is not None
    if name != "per-class" or len(study.settings.data.classes) <= 10:
        assert figure.get_figheight() <= (13 if name == "table3" else 10)  # which has two dozen rows
    check_legible(figure)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of CIFAR-10 with one seed."""
    return write_study(tmp_path_factory.mktemp("ten") / "study", settings_of(), seeds=1)


@pytest.mark.parametrize("keep", [5, 25, 50])
def test_figures_are_legible_however_much_was_run(keep: int, ten: Path, tmp_path: Path) -> None:
    folder = copy_study(ten, tmp_path / "study")
    remove_cells(folder, keep)
    found = load_study(folder)
    drawn = [figure for draw, _ in FIGURES.values() if (figure := draw(found)) is not None]
    assert drawn
    for figure in drawn:
        check_legible(figure)


def of(ten: Path, **values: float | None) -> Study:
    """The study of ten classes in which entries such as ``table3__rotnet_conv`` have these values."""
    found = load_study(ten)
    files = {key: dict(content) for key, content in found.files.items()}
    for name, value in values.items():
        item, _, entry = name.partition("__")
        planned: Entry = found.entry(item, entry.replace("_", "-"))
        for cell in planned.cells:
            if value is None:
                files.pop(cell.key, None)
            else:
                result = {**files[cell.key]["result"], planned.value: value}
                if planned.value == "accuracy":
                    images = found.settings.data.test_images
                    result["correct"] = packed_correct(value, images, int(cell.key[:8], 16))
                files[cell.key]["result"] = result
    return Study(found.folder, found.settings, found.seeds, found.entries, files)


def test_the_title_of_table_3_says_where_rotnet_stands(ten: Path) -> None:
    values = {
        "table3__rotnet_conv": 61.3,
        "table3__supervised": 64.8,
        "table3__random_conv_running": 40.0,
        "table3__random_conv_batch": 47.8,
    }
    said = findings.distance_to_supervised(of(ten, **values))
    below, above = "3.5 points below supervised", "13.5 points above an untrained network"
    assert said == f"RotNet + conv: 61.3 %, {below}, {above}"
    said = findings.distance_to_supervised(of(ten, **{**values, "table3__supervised": None}))
    assert said == "RotNet + conv: 61.3 %, 13.5 points above an untrained network"
    said = findings.distance_to_supervised(of(ten, **{**values, "table3__supervised": 61.4}))
    assert "0.1 points below supervised (within noise)" in said
    said = findings.distance_to_supervised(of(ten, **{**values, "table3__rotnet_conv": None}))
    assert said == "Frozen, fine-tuned, supervised and classical features"


def test_the_title_of_figure_5b_says_with_how_many_labels_rotnet_is_ahead(ten: Path) -> None:
    counts = load_study(ten).settings.labels_per_class
    level = {f"figure5b__{series}_{count}": 50.0 for count in counts for series in ("rotnet", "supervised")}
    assert "within noise with every number" in findings.few_labels(of(ten, **level))
    few = {**level, f"figure5b__rotnet_{counts[0]}": 60.0, f"figure5b__rotnet_{counts[1]}": 60.0}
    few[f"figure5b__supervised_{counts[-1]}"] = 70.0
    said = findings.few_labels(of(ten, **few))
    expected = f"ahead with {counts[0]:,} and {counts[1]:,} and behind with {counts[-1]:,} labels per class"
    assert said == f"RotNet is {expected}"


def test_a_class_without_test_images_has_no_accuracy(ten: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(ten)
    assert classes.tested_classes(study) == list(range(len(study.settings.data.classes)))
    found = classes.summed_confusion(study, "rotnet-conv")
    assert found is not None
    found[3] = [0] * len(found)
    monkeypatch.setattr(classes, "summed_confusion", lambda study, name: found)
    assert 3 not in classes.tested_classes(study)
    (table,) = [block for block in per_class(study, frozenset()).blocks if isinstance(block, Table)]
    assert len(table.rows) == len(study.settings.data.classes) - 1
    assert f"of {len(table.rows)} classes" in findings.best_and_worst_class(study)


def test_one_label_is_no_labels(tmp_path: Path) -> None:
    data = replace(settings_of().data, train_images=100, smallest_class=10)
    folder = write_study(tmp_path / "study", study_settings("demo", 1.0, data, "fp32"), seeds=1)
    level = {
        f"figure5b__{series}_{count}": 50.0 for count in (1, 2, 4, 10) for series in ("rotnet", "supervised")
    }
    ahead = of(folder, **{**level, "figure5b__rotnet_1": 60.0})
    assert findings.few_labels(ahead) == "RotNet is ahead with 1 label per class"


def test_other_titles_follow_the_numbers(ten: Path) -> None:
    best = {f"table1__{blocks}_conv2": 99.0 for blocks in (3, 4, 5)}
    assert "block 2, in networks of 3, 4 and 5 blocks alike" in findings.best_block(of(ten, **best))
    uneven = {**best, "table1__5_conv3": 99.5}
    assert "block 2 of 3, 2 of 4, 3 of 5" in findings.best_block(of(ten, **uneven))
    assert "by the block" in findings.best_block(of(ten, table1__4_conv2=None))
    sets = {"table2__90_270": 99.0, "table2__0_180": 90.0, "table2__0_90_180_270": 10.0}
    said = findings.best_rotations(of(ten, **sets, table2__eight=20.0))
    assert said == "{90°, 270°} gives the best features: 99.0 %, 9.0 points above {0°, 180°}"
    costly = findings.costliest(of(ten, ablations__faithful=90.0, ablations__one_rotation=1.0))
    assert costly.startswith("The costliest mistake, at 89.0 points: one random rotation an image")
    probes = {
        f"extras__{kind}_conv{block}": 10.0 * block for kind in ("knn", "linear") for block in range(1, 5)
    }
    said = findings.best_features(of(ten, **probes))
    assert said == "Best without a trained head: kNN 40.0 % on block 4, linear probe 40.0 % on block 4"


def test_numbers_of_no_common_seed_are_not_compared(tmp_path: Path) -> None:
    found = load_study(write_study(tmp_path / "study", settings_of(), seeds=2))
    best, *others = sorted(found.of("table2"), key=lambda number: -(number.mean or 0.0))
    gone = {best.entry.cells[0].key, *(number.entry.cells[1].key for number in others)}
    found = replace(found, files={key: file for key, file in found.files.items() if key not in gone})
    best, second, *_ = sorted(found.of("table2"), key=lambda number: -(number.mean or 0.0))
    assert mean_difference(best, second) is None
    assert findings.best_rotations(found) == f"{best.entry.title} gives the best features: {best.mean:.1f} %"


def test_the_most_confused_pair_is_named() -> None:
    assert (
        findings.most_confused([[1, 3], [0, 4]], ["cat", "dog"])
        == "; most often, cat is taken for dog (75.0 %)"
    )
    assert findings.most_confused([[1, 0], [0, 4]], ["cat", "dog"]) == ""


def test_a_study_of_nothing_has_neutral_titles(ten: Path, tmp_path: Path) -> None:
    folder = copy_study(ten, tmp_path / "study")
    remove_cells(folder)
    found = load_study(folder)
    for finding in (
        findings.best_block,
        findings.best_rotations,
        findings.distance_to_supervised,
        findings.rise_together,
        findings.few_labels,
        findings.best_features,
        findings.best_and_worst_class,
        findings.costliest,
    ):
        assert not any(letter.isdigit() for letter in finding(found).replace("5a", "")), finding


def words(figure: object) -> list[str]:
    return [text.get_text() for text in texts(figure)]  # type: ignore[arg-type]


def test_only_cifar_10_has_published_numbers_in_its_figures(study: Study, ten: Path) -> None:
    if set(study.settings.data.classes) == paper.CIFAR10_CLASSES:
        return
    for name in ("table1", "table2", "table3", "figure5b"):
        said = words(FIGURES[name][0](study))
        assert not [text for text in said if "quoted" in text or "published" in text or "reference" in text]
        assert [text for text in words(FIGURES[name][0](load_study(ten))) if "published" in text]


def test_figure_5a_shows_both_chances(study: Study) -> None:
    figure = FIGURES["figure5a"][0](study)
    assert figure is not None
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]  # type: ignore[index]
    assert levels == [25.0, 100 / len(study.settings.data.classes)]


def test_error_bars_are_deviations_of_seeds_or_intervals_of_the_test_images(study: Study) -> None:
    number = study.number("table3", "supervised")
    assert number.mean is not None
    low, high = study.interval(number) or (0.0, 0.0)
    if study.seeds.headline > 1:
        assert (low + high) / 2 == pytest.approx(number.mean)
        assert (high - low) / 2 == pytest.approx(number.deviation)
        assert "standard deviation over seeds" in study.error_bars
    else:
        assert (low, high) == wilson(number.mean, 10_000)
        assert study.error_bars == "error bars: 95 % interval of 10,000 test images"


@pytest.mark.parametrize(
    ("accuracy", "count", "expected"),
    [
        (50.0, 100, (40.38, 59.62)),
        (0.0, 10, (0.0, 27.75)),
        (100.0, 10, (72.25, 100.0)),
        (100.0, 1, (20.65, 100.0)),
    ],
)
def test_wilsons_interval_is_that_of_the_books(
    accuracy: float, count: int, expected: tuple[float, float]
) -> None:
    assert wilson(accuracy, count) == pytest.approx(expected, abs=0.01)


@pytest.fixture
def drawn_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Study], list[Bar]]:
    """Returns the rows of a bar chart instead of drawing it."""
    monkeypatch.setattr(figures, "bars", lambda rows, **_: rows)
    return lambda name, study: FIGURES[name][0](study)  # type: ignore[return-value]


def test_a_mark_beside_an_ablation_is_the_run_of_the_same_seed(
    tmp_path: Path, drawn_rows: Callable[[str, Study], list[Bar]]
) -> None:
    found = load_study(write_study(tmp_path / "study", settings_of(), seeds=1, headline=3))
    pairs = ablated_pairs(found)
    assert {faithful.n for _, faithful in pairs} == {1}
    for row, (number, faithful) in zip(drawn_rows("ablations", found), pairs, strict=True):
        assert row.mean is not None
        assert row.published is not None
        assert row.published == faithful.by_seed[0]
        assert row.mean - row.published == pytest.approx(mean_difference(number, faithful))


def test_the_costliest_mistake_is_one_that_costs_object_accuracy(ten: Path) -> None:
    rotations = {f"ablations__{name}": 1.0 for name in rotation_ablations(ten)}
    assert rotations
    costly = findings.costliest(of(ten, ablations__faithful=90.0, ablations__one_rotation=80.0, **rotations))
    assert costly.startswith("The costliest mistake")
    assert not any(load_title(ten, name) in costly for name in rotation_ablations(ten))


def rotation_ablations(folder: Path) -> list[str]:
    entries = [number.entry for number in load_study(folder).of("ablations")]
    return [entry.name.replace("-", "_") for entry in entries if entry.value == "rotation_accuracy"]


def load_title(folder: Path, name: str) -> str:
    return load_study(folder).entry("ablations", name.replace("_", "-")).title[1:]


def test_classes_are_compared_over_the_seeds_of_both_networks(
    tmp_path: Path, drawn_rows: Callable[[str, Study], list[Bar]]
) -> None:
    settings = settings_of("folder", "Images", "paper", 1.0, ("`ant` *b*", "bee", "cow"))
    found = load_study(write_study(tmp_path / "study", settings, seeds=3))
    seed_2 = found.entry("table3", "supervised").cells[2].key
    (found.folder / "cells" / f"{seed_2}.json").unlink()
    found = load_study(found.folder)
    rows = drawn_rows("per-class", found)
    assert [row.label for row in rows] == ["`ant` *b*", "bee", "cow"]  # figures are not Markdown
    (table,) = (block for block in per_class(found, frozenset()).blocks if isinstance(block, Table))
    differences = [row.mean - row.published for row in rows]  # type: ignore[operator]
    assert [cells[-1] for cells in table.rows] == [points(difference) for difference in differences]
    if min(differences) < 0:
        assert f"by {-min(differences):.1f} points" in findings.best_and_worst_class(found)
