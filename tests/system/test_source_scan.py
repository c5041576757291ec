"""What the source must never do, whatever it is given.

ruff refuses what runs data as code, follows an archive's paths, starts a shell or fetches (rules S and TID251
in pyproject.toml, with the exceptions). This file finds what ruff cannot know: files are only written and
removed through `rotnet_fast.files`, networks come without weights, and only one place calls ``torch.load``.
Each rule is shown to notice what it forbids.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ALLOWED = {
    ("rotnet_fast/data/cifar10.py", "download"): "the one download, whose hash is pinned",
    ("rotnet_fast/engine/checkpoint.py", "torch.load"): "with weights_only, after the digest was verified",
    ("rotnet_fast/engine/checkpoint.py", "write"): "to memory",
    ("rotnet_fast/files.py", "write"): "the one place that writes",
    ("rotnet_fast/files.py", "remove"): "temporary files, in a folder that was entered through no link",
    ("rotnet_fast/data/source.py", "write"): "os.open to read, for its speed",
    ("rotnet_fast/system.py", "write"): "asks whether os.open knows descriptors of folders",
    ("rotnet_fast/data/cache.py", "write"): "into a file of rotnet_fast.files",
    ("rotnet_fast/engine/streams.py", "write"): "to the null device",
    ("rotnet_fast/engine/run_folder.py", "write"): "the lock, to a descriptor of rotnet_fast.files",
    ("rotnet_fast/engine/run_folder.py", "remove"): "folders that were made for a run which never began",
    ("rotnet_fast/engine/run_log.py", "write"): "TensorBoard's own files, in a folder that is no link",
    ("rotnet_fast/engine/trainer.py", "remove"): "checkpoints, where one was just written",
    ("examples/features_of_a_folder.py", "write"): "photos in a temporary folder",
    ("rotnet_fast/feature_files.py", "write"): "members of a file of rotnet_fast.files",
    ("rotnet_fast/feature_files.py", "remove"): "the parts of a file that was just written",
    ("rotnet_fast/study/kinds.py", "remove"): "checkpoints, where one was just written",
    ("rotnet_fast/study/run.py", "remove"): "work of the study, in folders that are no links",
    ("rotnet_fast/study/store.py", "remove"): "likewise",
    ("rotnet_fast/plots/style.py", "write"): "to memory",
    ("examples/photos_set_upright.py", "write"): "photos in a temporary folder",
    ("rotnet_fast/command.py", "write"): "to the null device",
    ("benchmarks/gpu_check.py", "write"): "a developer's tool, to the file that was named",
    ("benchmarks/gpu_pack.py", "write"): "likewise, to the folder that was named",
    ("benchmarks/gpu_run.py", "write"): "likewise",
    ("benchmarks/kernel_resources.py", "write"): "a developer's tool, to the file that was named",
    ("benchmarks/speedrun.py", "write"): "likewise",
    ("benchmarks/soak.py", "write"): "likewise",
    ("benchmarks/wrong_uses.py", "write"): "the files that wrong uses are about",
    ("benchmarks/table.py", "write"): "likewise",
    (
        "build_tools/release.py",
        "write",
    ): "a developer's tool, to the folder that was named",
    ("build_tools/release.py", "archive"): "archives of its own making, in a temporary folder",
    ("build_tools/release.py", "remove"): "what it made in a temporary folder",
    ("setup.py", "remove"): "the package's own libraries of an earlier build",
}
"""(file, what is forbidden elsewhere) -> why it is done there."""

FUNCTIONS = {
    "code": "eval exec __import__ breakpoint",
    "torch.load": "torch.load",
    "write": "os.open os.rename os.replace os.renames os.link os.symlink os.truncate os.mkdir os.makedirs "
    "os.chmod os.mkfifo os.mknod shutil.copy shutil.copy2 shutil.copyfile shutil.copytree shutil.move "
    "torch.save numpy.save numpy.savez numpy.savetxt safetensors.torch.save_file "
    "torch.utils.tensorboard.SummaryWriter",
    "remove": "os.remove os.unlink os.rmdir os.removedirs shutil.rmtree",
}
"""What is forbidden -> functions, by full name."""

METHODS = {
    "write": "write_text write_bytes touch symlink_to hardlink_to mkdir rename savefig tofile dump_to_file",
    "remove": "unlink rmdir",
    "archive": "extract extractall",
    "download": "load_state_dict_from_url download_url_to_file urlretrieve urlopen hf_hub_download",
}
"""What is forbidden -> methods of any object."""

KIND_OF_FUNCTION, KIND_OF_METHOD = (
    {name: kind for kind, names in table.items() for name in names.split()} for table in (FUNCTIONS, METHODS)
)


def find(source: str) -> Iterator[tuple[int, str]]:
    """Line and kind of everything in a file that is forbidden but for exceptions."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (kind := KIND_OF_FUNCTION.get(f"{node.module}.{alias.name}")) is not None:
                    yield node.lineno, kind
        elif isinstance(node, ast.Name | ast.Attribute):
            method = node.attr if isinstance(node, ast.Attribute) else ""
            kind = KIND_OF_FUNCTION.get(full_name(node, names)) or KIND_OF_METHOD.get(method)
            if kind is not None:
                yield node.lineno, kind
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, kind) for kind in kinds_of_call(node, full_name(node.func, names)))


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """``numpy.load`` of ``np.load``; empty where it is more than names."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := full_name(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def kinds_of_call(call: ast.Call, name: str) -> Iterator[str]:
    """What is forbidden because of its arguments; only writing has exceptions."""
    given = {word.arg: word.value for word in call.keywords}
    constants = {word: value.value for word, value in given.items() if isinstance(value, ast.Constant)}
    method = call.func.attr if isinstance(call.func, ast.Attribute) else name
    if name == "compile":  # elsewhere a name like others
        yield "code"
    if name == "torch.load" and constants.get("weights_only") is not True:
        yield "unsafe torch.load"
    if constants.get("pretrained") is True or (
        method in ("get_model", "create_model")
        and constants.get("weights", ...) is not None
        and constants.get("pretrained") is not False
    ):
        yield "download"
    if "shell" in given and constants.get("shell") is not False:
        yield "shell"
    if method in ("open", "fdopen") and name not in ("os.open", "tarfile.open", "PIL.Image.open"):
        first = 0 if isinstance(call.func, ast.Attribute) and name not in ("os.fdopen", "io.open") else 1
        modes = [*call.args[first : first + 1], *([given["mode"]] if "mode" in given else [])]
        # A mode that is computed may be any; the first argument of other things that open is none.
        if any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes):
            yield "write"


def sources() -> dict[str, str]:
    """Path -> text of all Python that ships, builds or measures."""
    files = [ROOT / "setup.py", ROOT / "hubconf.py"]
    for folder in ("rotnet_fast", "benchmarks", "build_tools", "examples"):
        files += (ROOT / folder).rglob("*.py")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}


def test_the_source_does_nothing_that_is_forbidden() -> None:
    found = {(path, kind): line for path, text in sources().items() for line, kind in find(text)}
    surprises = [
        f"{path}:{line} {kind}" for (path, kind), line in found.items() if (path, kind) not in ALLOWED
    ]
    assert surprises == []
    assert ALLOWED.keys() - found.keys() == set(), "exceptions that nothing needs any more"


def test_checkpoints_are_the_only_thing_that_torch_loads() -> None:
    places = [path for path, text in sources().items() for _, kind in find(text) if kind == "torch.load"]
    assert places == ["rotnet_fast/engine/checkpoint.py"]


PLANTED = {
    "code": """
        eval(text)
        list(map(eval, texts))
        compile(text, "", "exec")
        __import__(name)
    """,
    "shell": """
        import subprocess; subprocess.run(["ls"], shell=flag)
        from subprocess import run; run("ls", shell=True)
    """,
    "archive": """
        tar.extractall(path)
        tar.extract(member)
    """,
    "write": """
        open(path, "w")
        open(path, mode="ab")
        open(path, mode)
        path.open("r+")
        path.open(mode="x")
        path.write_text(text)
        path.write_bytes(content)
        path.mkdir()
        path.touch()
        import os; os.open(path, flags)
        import os; os.fdopen(descriptor, "a")
        import os; os.makedirs(path)
        import shutil; shutil.copy(a, b)
        figure.savefig(path)
        from torch.utils.tensorboard import SummaryWriter
        import torch; torch.save(state, path)
    """,
    "remove": """
        path.unlink()
        import os; os.remove(path)
        import shutil; shutil.rmtree(path)
    """,
    "torch.load": """
        import torch; torch.load(path, weights_only=True)
        from torch import load
    """,
    "unsafe torch.load": """
        import torch; torch.load(path)
        import torch; torch.load(path, weights_only=False)
        from torch import load; load(path)
        import torch as t; t.load(path, weights_only=flag)
    """,
    "download": """
        timm.create_model(name, pretrained=True)
        timm.create_model(name)
        models.get_model(name, weights="DEFAULT")
        models.resnet18(pretrained=True)
        network.load_state_dict_from_url(url)
    """,
}
CASES = [(kind, line.strip()) for kind, lines in PLANTED.items() for line in lines.strip().splitlines()]


@pytest.mark.parametrize(("kind", "line"), CASES)
def test_each_rule_notices_what_it_forbids(kind: str, line: str) -> None:
    assert kind in [found for _, found in find(line)]


FOR_RUFF = """
import pickle
from pickle import loads
import pickle as json
import _pickle
from torch import package
import os, marshal
import joblib; joblib.load(path)
from joblib import load
import torch.distributed as dist; dist.all_gather_object(values, value)
import numpy as np; np.load(path, allow_pickle=False)
import torch; torch.serialization.add_safe_globals([thing])
import torch.package
eval(text)
exec(text)
import yaml
import torch; torch.jit.load(path)
from torch import jit; jit.load(path)
from torch.jit import load
import os; os.system("ls")
from os import system
os.popen("ls")
import subprocess; subprocess.getoutput("ls")
run = os.system
import subprocess; subprocess.run("ls", shell=True)
import tempfile; tempfile.mktemp()
from tempfile import mktemp
import shutil; shutil.unpack_archive(path)
import zipfile
import tarfile; tarfile.open(path)
import urllib.request
from urllib import request
from urllib.request import urlopen
import torch; torch.hub.load(name)
from torch.hub import load
import requests
import socket
import numpy as np; np.load(path)
import numpy; numpy.load(path, allow_pickle=True)
from numpy import load; load(path)
import ctypes; ctypes.CDLL(path)
torch.ops.load_library(path)
"""


@pytest.fixture(scope="module")
def lines_that_ruff_refuses() -> set[int]:
    """Numbers of the lines of ``FOR_RUFF`` that the project's own rules find."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename"]
    done = subprocess.run(
        [*command, "rotnet_fast/planted.py", "-"],
        input=FOR_RUFF.lstrip(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    return {one["location"]["row"] for one in found if one["code"].startswith(("S", "TID"))}


@pytest.mark.parametrize(
    ("number", "line"), [*enumerate(FOR_RUFF.strip().splitlines(), 1)], ids=FOR_RUFF.strip().splitlines()
)
def test_ruff_notices_what_it_forbids(number: int, line: str, lines_that_ruff_refuses: set[int]) -> None:
    assert number in lines_that_ruff_refuses


@pytest.mark.parametrize(
    "line",
    [
        "network.eval()",
        "import torch; torch.compile(network)",
        "import re; re.compile(pattern)",
        "open(path)",
        'open(path, "rb")',
        'path.open("rb")',
        "text.replace(a, b)",
        'import subprocess; subprocess.run(["git", "describe"], shell=False)',
        "import subprocess; subprocess.CompletedProcess(command, 0)",
        "timm.create_model(name, pretrained=False)",
        "models.get_model(name, weights=None)",
        "import json; json.loads(text)",
        "codes.pop()",
    ],
)
def test_what_is_harmless_is_not_noticed(line: str) -> None:
    assert list(find(line)) == []


THINGS = {
    *("images", "epochs", "classes", "steps", "checkpoints", "seeds", "cells", "labels", "processes"),
    *("threads", "values", "filters", "neighbours", "views", "others", "groups", "networks", "files"),
    *("cores", "workers", "shards", "heads", "channels"),
}
"""Plurals of what messages count; bytes and pixels are always many."""

NOT_COUNTED = {
    ("rotnet_fast/data/layout.py", "path", "shards"): "a name",
    ("rotnet_fast/data/layout.py", "root", "shards"): "a name",
    ("rotnet_fast/models/library.py", "name", "images"): "a name",
    ("rotnet_fast/reproduce.py", "self.headline_seeds", "seeds"): "a name",
    ("rotnet_fast/backbone_inputs.py", "kind", "images"): "a name",
    ("rotnet_fast/model_card.py", "size", "images"): "the side of an image",
    ("rotnet_fast/files.py", "limit", "files"): "the limit of open files, of which a process has several",
    ("rotnet_fast/engine/replay.py", "processes.world", "processes"): "of a training with several",
    ("rotnet_fast/engine/task.py", "name", "filters"): "a name",
    ("rotnet_fast/ops/arguments.py", "channels", "channels"): "the same sentence as in csrc/checks.h",
    ("rotnet_fast/ops/arguments.py", "count", "values"): "the same sentence as in csrc/checks.h",
}
"""(file, what stands before the plural, the plural) -> why it needs no singular."""


def counted_by_hand(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield each number in an f-string with a plural behind it, which would say "1 images"."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for part, behind in itertools.pairwise(node.values):
            if not isinstance(part, ast.FormattedValue) or not isinstance(behind, ast.Constant):
                continue
            words = re.match(r" ([a-z-]+)\b(?: ([a-z-]+)\b)?", str(behind.value))
            things = [word for word in words.groups() if word in THINGS] if words else []
            form = "" if part.format_spec is None else ast.unparse(part.format_spec).strip("f'\"")
            # Constants are several, and numbers with decimals need no singular.
            if things and not ast.unparse(part.value).isupper() and not re.search(r"(\.\d|^g)$", form):
                yield ast.unparse(part.value), things[0]


def test_messages_count_with_the_one_helper() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), *pair)
        for path in sorted((ROOT / "rotnet_fast").rglob("*.py"))
        for pair in counted_by_hand(ast.parse(path.read_text()))
    }
    assert found == set(NOT_COUNTED)


def test_counting_by_hand_is_noticed() -> None:
    source = """f"{len(x)} test images, {MOST} images, {counted(n, 'image')} in {n:,} files at 5" """
    assert not list(counted_by_hand(ast.parse("""f"{r:.0f} images/s, {w:g} epochs" """)))
    assert list(counted_by_hand(ast.parse(source))) == [("len(x)", "images"), ("n", "files")]
