"""Load the compiled kernels and register what torch needs to know about the ops.

The two ops of the data path, ``rotnet_fast::rotate_batch_out`` for multiples of 90 degrees and
``rotnet_fast::warp_batch_out`` for any angle, have up to three implementations: CPU, CUDA (a separate library
for each major version of CUDA, because one that is linked to CUDA does not load with another torch) and, for
a device whose library is missing (an AMD GPU, too, which torch calls cuda), the plain-torch reference.
Apple's GPUs (mps) get views that were made on the CPU. The ops behind
:func:`rotnet_fast.ops.batch_norm.batch_norm_relu` exist only in the CPU library.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from rotnet_fast.ops.fallback import FALLBACKS, ON_CPU

SCHEMAS = {  # SymInt lets one compiled graph take any seed, epoch and pad
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
"""Ops that only the CPU library has; `rotnet_fast.ops.batch_norm` works without them."""

_log = logging.getLogger("rotnet_fast")
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class KernelLibrary:
    """Describe the state of one compiled library.

    Attributes:
        device: "cpu" or "cuda".
        path: path of the library, or None if it was not built.
        loaded: whether its kernels are in use.
        detail: which kernel runs, or why the library is not in use.
    """

    device: str
    path: Path | None
    loaded: bool
    detail: str


def _load(device: str, package: Path = _PACKAGE) -> KernelLibrary:
    """Load the library for a device; there may be one for each major version of CUDA."""
    built = sorted(package.glob(f"_C_{device}*.so"))
    name = f"_C_cuda{(torch.version.cuda or '').partition('.')[0]}." if device == "cuda" else "_C_cpu."
    path = next((path for path in built if path.name.startswith(name)), None)
    if path is None and built:
        said = (
            f"the installed torch is {torch_build()}, and this was built: {', '.join(map(_cuda_of, built))}"
        )
        return KernelLibrary(device, built[0], False, said)
    if path is None:
        return KernelLibrary(device, None, False, "not built: see what the installation printed")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return KernelLibrary(device, path, False, f"does not load with torch {torch.__version__}: {error}")
    detail = _said(path, "rotnet_fast_cpu_kernel") if device == "cpu" else "fused kernel"
    return KernelLibrary(device, path, True, detail)


def _cuda_of(path: Path) -> str:
    return f"CUDA {path.name.removeprefix('_C_cuda').partition('.')[0]}"


def torch_build() -> str:
    """Return what devices the installed torch was built for."""
    if torch.version.hip is not None:
        return f"a build for ROCm {torch.version.hip}"
    return "a CPU build" if torch.version.cuda is None else f"a build for CUDA {torch.version.cuda}"


def build_information() -> tuple[str, str, str] | None:
    """Return the compiler, the version of torch and what was said of CUDA; None without compiled code."""
    if (path := LIBRARIES["cpu"].path) is None or not LIBRARIES["cpu"].loaded:
        return None
    compiler, with_torch, cuda = _said(path, "rotnet_fast_build").splitlines()
    return compiler, with_torch, cuda


def _said(path: Path, name: str) -> str:
    function = getattr(ctypes.CDLL(str(path)), name)
    function.restype = ctypes.c_char_p
    return str(function().decode())


def _shape_only(*arguments: object) -> None:
    """Stand in for an op on tensors without memory; it does not write to a real tensor among them."""
    devices = {argument.device for argument in arguments if isinstance(argument, torch.Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")


def _register() -> dict[str, KernelLibrary]:
    libraries = {"cpu": _load("cpu")}
    # The CPU library defines the schemas, so the CUDA library is useless without it.
    if libraries["cpu"].loaded:
        libraries["cuda"] = _load("cuda")
    else:
        libraries["cuda"] = KernelLibrary("cuda", None, False, "needs the CPU library")
        for schema in SCHEMAS.values():
            _definitions.define(schema)
    for name, on_cpu in ON_CPU.items():
        _definitions.impl(name, on_cpu, "MPS")
    missing = [library for library in libraries.values() if not library.loaded]
    for library in missing:
        for name, fallback in FALLBACKS.items():
            _definitions.impl(name, fallback, library.device.upper())
    for library in missing:
        # Counting GPUs does not initialise CUDA, after which forked processes could not use it.
        if library.device == "cpu" or torch.cuda.device_count() > 0:
            _log.warning(
                "the slow plain-torch fallback runs on %s, because its kernels are not in use: %s",
                library.device,
                library.detail,
            )
    for name in (*SCHEMAS, *(BATCH_NORM_OPS if libraries["cpu"].loaded else ())):
        if not hasattr(torch.ops.rotnet_fast, name):
            raise ImportError(
                f"the compiled kernels ({libraries['cpu'].path}) are older than this code and lack {name}; "
                f"install again (pip install -e .)"
            )
        torch.library.register_fake(f"rotnet_fast::{name}", _shape_only)
    return libraries


_definitions = torch.library.Library("rotnet_fast", "FRAGMENT")  # must outlive the registrations
LIBRARIES = _register()
"""State of each compiled library, by device type."""
