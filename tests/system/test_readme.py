"""The code of README.md and docs/ does what they say, and their commands have the flags that they use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_files import save
from pages import ROOT, page_text
from PIL import Image
from tensorboard.program import TensorBoard
from tiny import read_digits_once, tiny_config

import rotnet_fast
from rotnet_fast.benchmark import BenchmarkConfig
from rotnet_fast.config import PretrainConfig
from rotnet_fast.embed import EmbedConfig
from rotnet_fast.errors import ArgumentError
from rotnet_fast.evaluate import EvaluateConfig
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.flags import given_flags
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.orient import OrientConfig
from rotnet_fast.pretrain import pretrain
from rotnet_fast.reproduce import ReproduceConfig
from rotnet_fast.study.pages.report import update_readme
from rotnet_fast.visualize import VisualizeConfig

PAGES = {
    path.relative_to(ROOT).as_posix(): page_text(path)
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/*.ipynb")))
}
LANGUAGES = {
    "sh": "each command is parsed by its own parser, or is listed in NOT_CHECKED",
    "python": "each block is executed below; those of the notebook by tests/system/test_tutorial.py",
    "{eval-rst}": "tests/system/test_site.py builds the site, which imports what they name",
    "text": "output, which is not executed",
    "bibtex": "a citation, which is not executed",
}
"""Languages of the pages' blocks of code, each with how they are checked, or why not."""

SETTINGS = {
    "rotnet_fast.benchmark": BenchmarkConfig,
    "rotnet_fast.embed": EmbedConfig,
    "rotnet_fast.evaluate": EvaluateConfig,
    "rotnet_fast.export": ExportConfig,
    "rotnet_fast.orient": OrientConfig,
    "rotnet_fast.pretrain": PretrainConfig,
    "rotnet_fast.reproduce": ReproduceConfig,
    "rotnet_fast.visualize": VisualizeConfig,
}
NOT_CHECKED = {
    "git": "the address of the repository is the reader's",
    "cd": "the folder is made by the command before",
    ".": "the environment is made by the command before",
    "pip": "its flags are those of another program; .ci/run installs",
    "python -m venv": "of Python; .ci/run makes an environment",
}
"""Programs whose commands no test parses, each with the reason."""

IN_CI = (
    ("README.md", "pip install -e . && python -m rotnet_fast.pretrain --preset quickstart"),
    ("README.md", "pip install -e '.[dev]' && pytest"),
    (
        "docs/reproduce.md",
        "torchrun --nproc-per-node 2 -m rotnet_fast.reproduce --dataset digits "
        "--preset quickstart --scale 0.05 --limit-test 100",
    ),
    ("README.md", "python -m rotnet_fast.doctor"),
    ("README.md", "pytest benchmarks/ --benchmark-only"),
)


def code_blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language, without the indentation of a list's items."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def code_block(page: str, containing: str) -> str:
    (block,) = [block for block in code_blocks(page, "python") if containing in block]
    return block


def commands() -> Iterator[tuple[str, list[str]]]:
    """Page and words of every command in the pages' shell blocks."""
    for page in PAGES:
        for block in code_blocks(page, "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    cut = words.index("&&") if "&&" in words else len(words)
                    command, words = words[:cut], words[cut + 1 :]
                    while re.fullmatch(r"[A-Z0-9_]+=.*", command[0]):
                        del command[0]
                    yield page, command


COMMANDS = list(commands())


def test_every_block_names_its_language_and_is_one_that_is_checked() -> None:
    for page, text in PAGES.items():
        opened = re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2]
        assert set(opened) <= LANGUAGES.keys(), page


def test_every_python_block_is_tried_here() -> None:
    tried = re.findall(r'code_block\("(\S+)", "(.+?)"\)', Path(__file__).read_text(encoding="utf-8"))
    for page in (page for page in PAGES if not page.endswith(".ipynb")):
        for block in code_blocks(page, "python"):
            assert [text for where, text in tried if where == page and text in block] != [], block


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}: {shlex.join(words)}" for page, words in COMMANDS]
)
def test_every_command_is_one_of_this_project_with_its_flags(
    page: str, words: list[str], pytestconfig: pytest.Config
) -> None:
    if words[0] in NOT_CHECKED or " ".join(words[:3]) in NOT_CHECKED:
        return
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        cut = words.index("-m")
        get_args_parser().parse_args([*words[1:cut], "script"])
        words = ["python", *words[cut:]]
    if words[0] == "tensorboard":
        TensorBoard().configure(words)
    elif words[0] == "pytest":
        check_pytest(words[1:], pytestconfig)
    elif words[:2] == ["python", "-m"]:
        module, *flags = words[2:]
        if module in SETTINGS:
            given_flags(SETTINGS[module], module, flags)
        else:
            source = inspect.getsource(importlib.import_module(module))
            check_flags_in_source(flags, source)
    else:
        assert words[0] == "python", f"{page} has a command of an unknown program: {words}"
        check_flags_in_source(words[2:], (ROOT / words[1]).read_text(encoding="utf-8"))


def check_pytest(words: list[str], config: pytest.Config) -> None:
    marks = [mark.partition("(")[0].partition(":")[0] for mark in config.getini("markers")]
    while words:
        word = words.pop(0)
        if word == "-m":
            assert words.pop(0) in marks
        elif word.startswith("-"):
            config.getoption(word.partition("=")[0])  # ValueError for one that pytest does not have
        else:
            assert (ROOT / word).exists()


def check_flags_in_source(words: list[str], source: str) -> None:
    """Each flag is written down in the program, as an option of argparse or a field of its settings."""
    for flag in (word for word in words if word.startswith("-")):
        field = flag.removeprefix("--").replace("-", "_")
        assert f'"{flag}"' in source or re.search(rf"^    {field}: ", source, re.MULTILINE), flag


def test_a_wrong_flag_in_a_page_would_be_noticed(pytestconfig: pytest.Config) -> None:
    with pytest.raises(ValueError, match="olny"):
        check_pytest(["--benchmark-olny"], pytestconfig)
    with pytest.raises(AssertionError):
        check_flags_in_source(["--readm"], 'parser.add_argument("--readme")\n    read: int\n')
    check_flags_in_source(["--examples"], "class Settings:\n    examples: int = 3\n")


def test_what_is_not_checked_occurs() -> None:
    used = {words[0] for _, words in COMMANDS} | {" ".join(words[:3]) for _, words in COMMANDS}
    assert used >= NOT_CHECKED.keys()


@pytest.mark.parametrize(("page", "line"), IN_CI)
def test_the_pages_have_the_lines_that_the_gate_runs(page: str, line: str) -> None:
    assert line in [row for block in code_blocks(page, "sh") for row in block.splitlines()]


def test_the_readme_is_for_the_first_ten_minutes() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert len(PAGES["README.md"].split()) <= 1000


def test_the_index_and_the_readme_lead_to_every_page() -> None:
    links = set(re.findall(r"\]\(([\w-]+\.(?:md|ipynb))\)", PAGES["docs/README.md"]))
    assert links == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}


@pytest.mark.parametrize(
    ("name", "recorded"),
    [("docs/results.md", "cifar10-jpeg-cpu"), ("docs/other-features.md", "cifar10-jpeg-table3")],
)
def test_a_page_of_results_is_what_the_generator_writes(name: str, recorded: str, tmp_path: Path) -> None:
    page, study = tmp_path / name, tmp_path / "results" / recorded
    page.parent.mkdir()
    page.write_text(PAGES[name], encoding="utf-8")
    shutil.copytree(ROOT / "results" / study.name, study, ignore=shutil.ignore_patterns("figures", "runs"))
    update_readme(study, page)
    assert page.read_text(encoding="utf-8") == PAGES[name]


def test_the_readmes_loop_is_that_of_the_example() -> None:
    example = (ROOT / "examples" / "rotnet_in_20_lines.py").read_text(encoding="utf-8").splitlines()
    lines = iter(example)
    for line in code_block("README.md", "epoch_order").splitlines():
        assert line in lines, f"the example lacks, in this order: {line}"


def test_the_example_of_the_op_runs_and_is_the_same_on_both_pages() -> None:
    names: dict[str, Any] = {}
    assert code_block("README.md", "randperm") == code_block("docs/op.md", "randperm")
    exec(code_block("README.md", "randperm"), names)
    assert names["views"].shape == (512, 3, 32, 32)
    assert names["rotation_labels"].tolist() == [0, 1, 2, 3] * 128


def test_the_signature_is_that_of_the_op() -> None:
    (assignment,) = ast.parse(code_block("docs/op.md", "indices=None").replace("*, ", "")).body
    assert isinstance(assignment, ast.Assign)
    assert isinstance(assignment.value, ast.Call)
    call = assignment.value
    told = {"images": inspect.Parameter.empty}
    for keyword in call.keywords:
        assert keyword.arg is not None
        told[keyword.arg] = eval(ast.unparse(keyword.value), {"torch": torch})
    real = {name: p.default for name, p in inspect.signature(rotnet_fast.rotate_batch).parameters.items()}
    assert list(told) == list(real)
    assert {name: value for name, value in told.items() if value is not ...} == {
        name: value for name, value in real.items() if told[name] is not ...
    }


def test_the_example_of_other_angles_runs() -> None:
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    names = {"rotnet_fast": rotnet_fast, "images": images, "indices": torch.tensor([2, 0])}
    exec(code_block("docs/op.md", "0, 45, 90"), names)
    assert names["views"].shape == (16, 3, 32, 32)
    assert names["rotation_labels"].tolist() == [*range(8)] * 2


def test_the_example_of_the_auxiliary_loss_runs() -> None:
    images = torch.randint(0, 256, (130, 32, 32, 3), dtype=torch.uint8)
    names: dict[str, Any] = {"torch": torch, "rotnet_fast": rotnet_fast, "images": images}
    exec(code_block("docs/op.md", "RotationLoss"), names)
    assert 0 < names["loss"].item() < 10
    assert 0 <= names["accuracy"].item() <= 1


def test_the_examples_of_the_own_loop_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    def smaller(code: str, *changes: tuple[str, str]) -> None:
        for written, shorter in changes:
            assert code.count(written) == 1, written
            code = code.replace(written, shorter)
        exec(code, names)

    narrow = ("epochs=8", "epochs=4, width=0.05")
    smaller(code_block("docs/own-loop.md", "metrics is the content"), ("(500", "(60"), narrow)
    assert names["vectors"].shape[0] == 60
    assert 0 <= names["accuracy"] <= 100
    smaller(code_block("docs/own-loop.md", "FakeData"), ("(200", "(40"), ("size=64", "size=32"))
    assert names["trained"].metrics["settings"]["model"] == "resnet18"
    smaller(code_block("docs/own-loop.md", "class Encoder"))
    assert names["maps"].shape == (60, 32, 16, 16)
    assert torch.equal(names["backbone"](names["images"]), names["trained"].backbone(names["images"]))
    smaller(code_block("docs/own-loop.md", "init_from"), ("epochs=4", "epochs=4, width=0.05"))
    assert rotnet_fast.load_backbone("my-model").metadata["epochs"] == "4"
    smaller(code_block("docs/own-loop.md", "normalise ="))
    assert names["scores"].shape == (32, 10)
    with pytest.raises(ArgumentError, match="its last layer was replaced"):
        names["more"].backbone.rotation_logits(names["images"])
    smaller(code_block("docs/own-loop.md", "images.split"))
    assert names["rotate"].key.tolist() == [0, 1]
    smaller(code_block("docs/own-loop.md", "of_features"))
    names["loss"].backward()
    assert 0 < names["loss"].item() < 10


def test_the_lightning_module_of_the_page_is_that_of_the_example_and_uses_the_op() -> None:
    code = code_block("docs/own-loop.md", "on_after_batch_transfer")
    lines = iter((ROOT / "examples" / "rotnet_in_lightning.py").read_text(encoding="utf-8").splitlines())
    for line in code.splitlines():
        assert any(other.startswith(line) for other in lines), f"the example lacks, in this order: {line}"
    # Without Lightning, its base class is torch's module with hooks that it would call.
    names = {"lightning": SimpleNamespace(LightningModule=torch.nn.Module), "torch": torch, "Any": Any}
    exec(code, names)
    module = names["RotNet"]()  # type: ignore[operator]
    module.rotate, module.network = rotnet_fast.RotateBatch(), NetworkInNetwork(4, 3, 0.05)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    views, labels = module.on_after_batch_transfer([images], 0)
    assert torch.equal(views, rotnet_fast.RotateBatch()(images)[0])
    assert module.training_step((views, labels), 0).requires_grad


def test_the_op_equals_the_plain_torch_code_behind_it() -> None:
    names: dict[str, Any] = {}
    exec(code_block("docs/op.md", "randperm"), names)
    views, rotation_labels = names.pop("views"), names.pop("rotation_labels")
    exec(code_block("docs/op.md", "torch.rot90"), names)
    assert torch.equal(views, names["views"])
    assert torch.equal(rotation_labels, names["rotation_labels"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_plain_torch_code_holds_for_other_settings(dtype: str) -> None:
    written = "seed, epoch, pad, flip_prob, dtype = 0, 3, 4, 0.5, torch.float32"
    code = code_block("docs/op.md", "torch.rot90")
    assert written in code
    settings = {"seed": -5, "epoch": 2, "pad": 7, "flip_prob": 0.8}
    changed = f"seed, epoch, pad, flip_prob = {', '.join(map(str, settings.values()))}; dtype = torch.{dtype}"
    images = torch.randint(0, 256, (20, 31, 31, 3), dtype=torch.uint8)
    names = {
        "torch": torch,
        "rotnet_fast": rotnet_fast,
        "images": images,
        "indices": torch.tensor([3, 19, 0, 7, 7]),
    }
    exec(code.replace(written, changed), names)
    views, rotation_labels = rotnet_fast.rotate_batch(
        images, names["indices"], **settings, dtype=getattr(torch, dtype)
    )
    assert torch.equal(views, names["views"])
    assert torch.equal(rotation_labels, names["rotation_labels"])


def test_the_examples_of_the_features_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with read_digits_once():
        pretrain(tiny_config(Path("run")))
    export(ExportConfig(Path("run"), output=Path("my-rotnet")))
    names: dict[str, Any] = {}
    exec(code_block("docs/features.md", "load_backbone"), names)
    assert names["maps"].shape == (100, 8, 8, 8)
    assert torch.equal(names["vectors"], names["maps"].mean(dim=(2, 3)))
    assert names["rotations"].shape == (100, 4, 4)
    array = names["images"][:8].numpy()
    for place in ("PHOTOS/a.png", "a.jpg", "b.png"):
        save(Path(place), array[0])
    names |= {"picture": Image.fromarray(array[0]), "array": array, "labels": [0, 1] * 4}
    exec(code_block("docs/features.md", "embed(array)"), names)
    assert names["vectors"].shape == (8, 8)
    exec(code_block("docs/features.md", "GridSearchCV"), names)
    assert names["search"].predict(array).shape == (8,)
    exec(code_block("docs/features.md", "torch.hub.load").replace("path/to/the/clone", str(ROOT)), names)
    assert torch.equal(names["backbone"].features(names["images"]), names["maps"])
    assert names["network"].layers == ("conv1", "conv2", "conv3", "conv4")


@pytest.mark.parametrize(
    ("page", "table"),
    [
        ("docs/performance-tables.md", "benchmarks"),
        ("docs/performance-tables.md", "steps"),
        ("docs/performance-tables.md", "loaders"),
        ("docs/results.md", "accuracy"),
        ("docs/other-features.md", "accuracy"),
    ],
)
def test_the_tables_are_filled_in(page: str, table: str) -> None:
    text = PAGES[page].partition(f"<!-- {table}: begin -->")[2].partition(f"<!-- {table}: end -->")[0]
    assert len([line for line in text.splitlines() if line.startswith("|")]) >= 5
