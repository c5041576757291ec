"""The doctor tells what is missing, and fails only where something that is required does not work."""

from __future__ import annotations

import sys

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
    assert f"{torch.__version__}, a build for ROCm 7.1\n" in printed
    assert "ROCm          the plain-torch fallback makes the views" in printed
    assert "CPU build" not in printed
    assert "CUDA None" not in printed
