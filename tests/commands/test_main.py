"""``python -m rotnet_fast`` lists the commands and runs them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import rotnet_fast
from rotnet_fast.__main__ import COMMANDS, main

PACKAGE = Path(rotnet_fast.__file__).parent


def test_every_command_is_listed_once_in_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with_main = {path.stem for path in PACKAGE.glob("[a-z]*.py") if "\ndef main(" in path.read_text()}
    assert COMMANDS.keys() == with_main
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == printed
    for name in COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in printed.splitlines()) == 1
    assert max(map(len, printed.splitlines())) <= 95


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rotnet_fast {rotnet_fast.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_run_with_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"rotnet_fast.{name}" in capsys.readouterr().out
    assert (
        importlib.import_module(f"rotnet_fast.{name}").main(["--nonsense"]) == main([name, "--nonsense"]) == 2
    )


def test_an_unknown_command_is_answered_with_one_like_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrian"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'pretrian'; did you mean pretrain?\n"
    assert main(["xyz"]) == 2
    assert "choose from doctor, pretrain, visualize" in capsys.readouterr().err


def test_the_module_runs_without_torch() -> None:
    program = "import sys, runpy; sys.argv[1:] = []\n"
    program += "try: runpy.run_module('rotnet_fast', run_name='__main__')\nexcept SystemExit: pass\n"
    program += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout
