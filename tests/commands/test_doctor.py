"""The doctor tells what is missing, and fails only where something that is required does not work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from rotnet_fast import doctor
from rotnet_fast.ops import library
from rotnet_fast.ops.library import LIBRARIES

needs_kernels = pytest.mark.skipif(not LIBRARIES["cpu"].loaded, reason="the CPU library was not built")


@needs_kernels
def test_a_missing_dali_is_told_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    if sys.platform == "linux":
        assert "DALI          not in use, so images are kept in memory: " in printed
        assert "pip install nvidia-dali-cuda" in printed
    assert "All is well" in printed
    assert "To do" not in printed


@needs_kernels
def test_a_kernel_that_differs_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rotnet_fast.ops import reference

    right = reference.rotate_batch_reference

    def wrong(*arguments: object) -> object:
        views, labels = right(*arguments)  # type: ignore[arg-type]
        return views + 1, labels

    monkeypatch.setattr(reference, "rotate_batch_reference", wrong)
    assert doctor.main([]) == 1
    assert "- the cpu kernel differs from the plain-torch definition" in capsys.readouterr().out


def test_a_torch_that_was_not_tested_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = "; tested: 2.10, 2.14, 2.15"
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    doctor.main([])
    assert tested not in capsys.readouterr().out
    monkeypatch.setattr(torch, "__version__", "2.16.0a0+git123")
    doctor.main([])
    assert f"2.16.0a0+git123, {library.torch_build()}{tested}\n" in capsys.readouterr().out


def test_a_torch_for_amd_gpus_is_no_cpu_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert library._load("cuda").loaded is False
    doctor.main([])
    printed = capsys.readouterr().out
    assert f"{torch.__version__}, a build for ROCm 7.1" in printed
    assert "ROCm          the plain-torch fallback makes the views" in printed
    assert "CPU build" not in printed
    assert "CUDA None" not in printed


@pytest.mark.parametrize(
    ("cuda", "said"),
    [
        ("12.9", "does not load with torch"),  # a file of nothing, which is tried
        ("13.0", "does not load with torch"),
        ("14.1", "the installed torch is a build for CUDA 14.1, and this was built: CUDA 12, CUDA 13"),
        (None, "the installed torch is a CPU build, and this was built: CUDA 12, CUDA 13"),
    ],
)
def test_the_cuda_library_is_the_one_for_torchs_major_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, said: str
) -> None:
    for major in (12, 13):
        (tmp_path / f"_C_cuda{major}.abi3.so").touch()
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = library._load("cuda", tmp_path)
    assert not found.loaded
    assert said in found.detail
    assert found.path == tmp_path / f"_C_cuda{13 if cuda == '13.0' else 12}.abi3.so"
