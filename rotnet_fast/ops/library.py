"""Loads the compiled kernels and registers what torch needs to know of the ops.

The two ops of the data path, ``rotnet_fast::rotate_batch_out`` for multiples of 90 degrees and
``rotnet_fast::warp_batch_out`` for any, have up to three implementations: CPU, CUDA (two libraries,
because one linked to CUDA does not load beside a CPU-only torch) and, for a device whose library is
missing, the plain-torch reference. The ops behind :func:`rotnet_fast.ops.batch_norm.batch_norm_relu` are in
the CPU library alone.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from rotnet_fast.ops.fallback import FALLBACKS

SCHEMAS = {  # SymInt: compiled graphs take any seed, epoch and pad, instead of one graph for each
    "rotate_batch_out": (
        "rotate_batch_out(Tensor(a!) views, Tensor(b!) labels, Tensor images, Tensor? indices, "
        "Tensor? sample_ids, Tensor? key, SymInt seed, SymInt epoch, int[] turns, SymInt pad, "
        "float flip_prob, float[] mean, float[] std) -> ()"
    ),
    "warp_batch_out": (
        "warp_batch_out(Tensor(a!) views, Tensor(b!) labels, Tensor images, Tensor? indices, "
        "Tensor? sample_ids, Tensor? key, SymInt seed, SymInt epoch, int[] degrees, SymInt pad, "
        "float flip_prob, float[] mean, float[] std) -> ()"
    ),
}

BATCH_NORM_OPS = ("batch_norm_relu_train_out", "batch_norm_relu_eval_out", "batch_norm_relu_backward_out")
"""Ops of the CPU library alone; `rotnet_fast.ops.batch_norm` does without them where it is missing."""

_log = logging.getLogger("rotnet_fast")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class KernelLibrary:
    """What became of one compiled library.

    Attributes:
        device: "cpu" or "cuda".
        path: the file, or None where it was not built.
        loaded: whether its kernels are in use.
        detail: which kernel runs, or why the library is not in use.
    """

    device: str
    path: Path | None
    loaded: bool
    detail: str


def _load(device: str) -> KernelLibrary:
    path = next(iter(sorted(_PACKAGE.glob(f"_C_{device}*.so"))), None)
    if path is None:
        return KernelLibrary(device, None, False, "not built: see what the installation printed")
    if device == "cuda" and torch.version.cuda is None:
        return KernelLibrary(device, path, False, "the installed torch is a CPU build")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return KernelLibrary(device, path, False, f"does not load with torch {torch.__version__}: {error}")
    return KernelLibrary(device, path, True, _selected_kernel(path) if device == "cpu" else "fused kernel")


def _selected_kernel(path: Path) -> str:
    name = ctypes.CDLL(str(path)).rotnet_fast_cpu_kernel
    name.restype = ctypes.c_char_p
    return str(name().decode())


def _shape_only(*arguments: object) -> None:
    """Stands for an op where tensors have no memory. A real tensor among them would be left as it was."""
    devices = {argument.device for argument in arguments if isinstance(argument, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")


def _register() -> dict[str, KernelLibrary]:
    libraries = {"cpu": _load("cpu")}
    # The schemas live in the CPU library, so the CUDA library is of no use without it.
    if libraries["cpu"].loaded:
        libraries["cuda"] = _load("cuda")
    else:
        libraries["cuda"] = KernelLibrary("cuda", None, False, "needs the CPU library")
        for schema in SCHEMAS.values():
            _definitions.define(schema)
    missing = [library for library in libraries.values() if not library.loaded]
    for library in missing:
        for name, fallback in FALLBACKS.items():
            _definitions.impl(name, fallback, library.device.upper())
    for library in missing:
        if library.device == "cpu" or torch.cuda.is_available():
            _log.warning(
                "the plain-torch fallback runs on %s, which is slow: kernels %s",
                library.device,
                library.detail,
            )
    for name in (*SCHEMAS, *(BATCH_NORM_OPS if libraries["cpu"].loaded else ())):
        if not hasattr(torch.ops.rotnet_fast, name):
            raise ImportError(
                f"the compiled kernels ({libraries['cpu'].path}) are older than this code: they have no "
                f"{name}; install again (pip install -e .)"
            )
        torch.library.register_fake(f"rotnet_fast::{name}", _shape_only)
    return libraries


_definitions = torch.library.Library("rotnet_fast", "FRAGMENT")  # must outlive the registrations
LIBRARIES = _register()
"""What became of each compiled library, by device type."""
