"""The doctor tells what is missing, and fails only where something that is required does not work."""

from __future__ import annotations

import sys

import pytest

from rotnet_fast import doctor
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
