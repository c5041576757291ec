"""Builds the kernels: a CPU library, a CUDA library where the toolkit fits, and a pybind11 module.

ROTNET_CUDA=0|1|auto: without, with (or fail), or with CUDA kernels where nvcc fits torch (default).
TORCH_CUDA_ARCH_LIST: GPU architectures as numbers, such as "8.0;9.0"; PTX of the newest is always added.
ROTNET_URL: address of the repository, for the links on the package's page; without it they become text.
ROTNET_PYTHONS: interpreters, separated as in PATH, to build the pybind11 module for besides this one.

The libraries use torch's stable ABI and no Python, and the package works without the pybind11 module, so
that one wheel serves every Python: its tag is py3-none. Without a compiler it holds no kernels, and is tagged
"any".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# Without contraction, what is written as two roundings is two, whichever instructions a kernel may use.
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
LINK_FLAGS = ["-Wl,-s"] if sys.platform == "linux" else []  # strip what only a debugger reads
NVCC_FLAGS = ["-std=c++17", "-O3", "--threads=2", "-Xcompiler=-fvisibility=hidden"]
# Code of one major version runs on its later minors (8.0 on 8.6 and 8.9); PTX of the newest serves the
# GPUs of the future. Those that nvcc does not know are left out.
ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")


def say(text: str) -> None:
    print(f"rotnet_fast: {text}", file=sys.stderr, flush=True)


def find_compiler() -> str | None:
    """The program that torch's build will call: that of CXX, else c++ or g++; None without one."""
    if sys.platform == "win32":  # whose compiler knows neither these flags nor the kernels' attributes
        return None
    chosen = os.environ.get("CXX", "").split()
    if chosen:
        found = shutil.which(chosen[0])
        if found is None:
            sys.exit(f"rotnet_fast: CXX is {os.environ['CXX']!r}, which is not found; correct it or unset it")
        return found
    os.environ.pop("CXX", None)  # an empty one would be called, too
    found = shutil.which("c++")
    if found is None and (found := shutil.which("g++")):
        os.environ["CXX"] = found
    return found


def cuda_toolkit() -> tuple[Path, str] | None:
    """Root folder and version of the toolkit behind nvcc; nvcc on PATH may be a wrapper script."""
    nvcc = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").is_file():
        nvcc = str(Path(home) / "bin" / "nvcc")
    if nvcc is None:
        return None
    dryrun = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    ).stderr
    here = re.search(r"_HERE_=(.+)", dryrun)
    version = re.search(
        r"release (\d+\.\d+)",
        subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout,
    )
    if here is None or version is None:
        return None
    return Path(here.group(1).strip()).parent, version.group(1)


def choose_cuda(torch_cuda: str | None, rocm: str | None) -> tuple[Path | None, str]:
    """Toolkit root to build with (None: CPU only) and the reason in one line."""
    wish = os.environ.get("ROTNET_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        sys.exit(f"rotnet_fast: ROTNET_CUDA is {wish!r}; set it to 0, 1 or auto")
    if wish == "0":
        return None, "not built: ROTNET_CUDA=0"
    toolkit = cuda_toolkit()
    if rocm is not None:
        reason = f"not built: torch is a build for ROCm {rocm}, whose GPUs run the plain-torch fallback"
    elif torch_cuda is None:
        reason = "not built: the installed torch is a CPU build; install a CUDA build of torch first"
    elif toolkit is None:
        reason = f"not built: nvcc was not found; install the CUDA {torch_cuda} toolkit or set CUDA_HOME"
    elif toolkit[1].split(".")[0] != torch_cuda.split(".")[0]:
        reason = (
            f"not built: nvcc is of CUDA {toolkit[1]}, torch of CUDA {torch_cuda}; "
            "install the toolkit of the same major version"
        )
    else:
        return toolkit[0], f"built with nvcc {toolkit[1]} for torch's CUDA {torch_cuda}"
    if wish == "1":
        sys.exit(f"rotnet_fast: ROTNET_CUDA=1, but the CUDA kernels are {reason}")
    return None, reason


def architecture_flags(root: Path) -> tuple[list[str], str]:
    """nvcc flags for the architectures to build, and their names."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if wanted:
        names = list(filter(None, re.split(r"[;\s,]+", wanted.replace("+PTX", ""))))
        if not names or not all(re.fullmatch(r"\d+\.\d+[af]?", name) for name in names):
            sys.exit(f'rotnet_fast: TORCH_CUDA_ARCH_LIST is {wanted!r}; give numbers, such as "8.0;9.0"')
    else:
        listing = subprocess.run(
            [str(root / "bin" / "nvcc"), "--list-gpu-arch"], capture_output=True, text=True, check=False
        ).stdout.split()
        names = [name for name in ARCHITECTURES if f"compute_{name.replace('.', '')}" in listing]
        if not names:
            sys.exit(f"rotnet_fast: nvcc knows none of {', '.join(ARCHITECTURES)}; set TORCH_CUDA_ARCH_LIST")
    names.sort(key=lambda name: float(name.rstrip("af")))
    codes = [name.replace(".", "") for name in names]
    flags = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in codes]
    newest = codes[-1].rstrip("af")  # PTX with a suffix would run on that architecture alone
    flags.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return flags, ";".join(names) + "+PTX"


def define(name: str, text: str) -> tuple[str, str]:
    return name, '"' + text.replace('"', "'") + '"'


def other_pythons() -> list[tuple[str, str]]:
    """Folder of the headers, and suffix of extension modules, of each interpreter in ROTNET_PYTHONS."""
    ask = (
        "import json, sysconfig as s; "
        "print(json.dumps([s.get_path('include'), s.get_config_var('EXT_SUFFIX')]))"
    )
    found = []
    for interpreter in filter(None, os.environ.get("ROTNET_PYTHONS", "").split(os.pathsep)):
        include, suffix = json.loads(subprocess.check_output([interpreter, "-c", ask], text=True))
        if not (Path(include) / "Python.h").is_file():
            sys.exit(f"rotnet_fast: ROTNET_PYTHONS names {interpreter}, whose headers are not in {include}")
        found.append((include, suffix))
    return found


def compiler_version() -> str:
    compiler = find_compiler()
    assert compiler is not None
    words = os.environ.get("CXX", compiler).split()  # ccache g++ --version is that of g++
    lines = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False).stdout
    return lines.splitlines()[0] if lines else compiler


class BuildKernels(build_ext):
    """Decides what to build when a build is asked for: metadata needs neither torch nor a compiler."""

    def run(self) -> None:
        # What an earlier build left behind would be loaded, although this one may not make it again. A wheel
        # leaves the checkout alone, whose kernels may be in use.
        place = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        for pattern in ("_C_*.so", "_core.*.so"):
            for stale in (place / "rotnet_fast").glob(pattern):
                stale.unlink()
        if find_compiler() is None:
            say("no C++ compiler was found that fits; the plain-torch fallback will run, which is slow")
            self.extensions = []
            return
        import torch

        root, reason = choose_cuda(torch.version.cuda, torch.version.hip)
        say(f"CUDA kernels {reason}")
        if root is not None:
            os.environ["CUDA_HOME"] = str(root)  # read when cpp_extension is imported
        from torch.utils import cpp_extension

        self.extensions = self.distribution.ext_modules = extensions(torch, cpp_extension, root, reason)

        class Builder(cpp_extension.BuildExtension):  # torch's, which runs ninja and knows nvcc
            def get_ext_filename(self, name: str) -> str:
                package, _, module = name.rpartition(".")  # setuptools asks for "_core", too
                suffix = {one.name.rpartition(".")[2]: one.suffix for one in self.extensions}[module]
                if suffix is None:
                    return super().get_ext_filename(name)
                return os.path.join(*package.split("."), f"_core{suffix}")

        builder = Builder(self.distribution)  # takes over this command's settings
        builder.ensure_finalized()
        for name in ("build_lib", "build_temp", "inplace", "editable_mode", "force", "debug"):
            setattr(builder, name, getattr(self, name))
        if self.inplace or self.editable_mode:  # so that ninja finds what it has compiled before
            builder.build_temp = str(ROOT / "build" / "editable")
        builder.extensions = self.extensions
        builder.run()
        self._outputs = builder.get_outputs()

    def get_outputs(self) -> list[str]:
        return getattr(self, "_outputs", [])

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [source for extension in self.extensions for source in extension.sources]


class OneWheel(bdist_wheel):
    """A wheel for every Python; without a compiler, for every platform, too, as it holds no kernels."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = find_compiler() is None

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


class CoreModule(Extension):
    """The pybind11 module; ``suffix`` is that of another Python, whose headers come first."""

    def __init__(self, include: str | None = None, suffix: str | None = None) -> None:
        import pybind11

        self.suffix = suffix
        number = "" if suffix is None else "_" + "".join(filter(str.isalnum, suffix))
        super().__init__(
            f"rotnet_fast._core{number}",
            ["csrc/core_module.cpp"],
            include_dirs=[*([] if include is None else [include]), pybind11.get_include()],
            extra_compile_args={"cxx": CXX_FLAGS},
            extra_link_args=LINK_FLAGS,
            depends=HEADERS,
            language="c++",
        )


class KernelLibrary(Extension):
    """A library of kernels, which uses torch's stable ABI and no Python."""

    suffix = None

    def __init__(self, name: str, sources: list[str], flags: dict[str, list[str]], **others: Any) -> None:
        flags = {**flags, "cxx": [*CXX_FLAGS, STABLE_ABI, *flags["cxx"]]}
        super().__init__(
            name,
            sources,
            extra_compile_args=flags,
            extra_link_args=LINK_FLAGS,
            depends=HEADERS,
            py_limited_api=True,
            language="c++",
            **others,
        )


def extensions(torch: Any, cpp_extension: Any, cuda_root: Path | None, cuda_reason: str) -> list[Extension]:
    includes = [path for path in cpp_extension.include_paths() if "torch" in path]
    libraries = cpp_extension.library_paths()
    architectures: list[str] = []
    cuda_info, cuda_major = cuda_reason, ""
    if cuda_root is not None:
        architectures, names = architecture_flags(cuda_root)
        cuda_major = torch.version.cuda.partition(".")[0]
        cuda_info = f"{cuda_reason}, architectures {names}"
    build = {"COMPILER": compiler_version(), "TORCH_VERSION": str(torch.__version__), "CUDA_INFO": cuda_info}
    found: list[Extension] = [
        KernelLibrary(
            "rotnet_fast._C_cpu",
            [
                "csrc/build_info.cpp",
                "csrc/op_cpu.cpp",
                "csrc/batch_norm_op.cpp",
                "csrc/cpu/rotate_cpu.cpp",
                "csrc/cpu/rotate_scalar.cpp",
                "csrc/cpu/rotate_avx2.cpp",
                "csrc/cpu/rotate_avx512.cpp",
                "csrc/cpu/warp_cpu.cpp",
                "csrc/cpu/warp_scalar.cpp",
                "csrc/cpu/warp_avx2.cpp",
                "csrc/cpu/batch_norm_cpu.cpp",
                "csrc/cpu/batch_norm_scalar.cpp",
                "csrc/cpu/batch_norm_avx2.cpp",
                "csrc/cpu/batch_norm_avx512.cpp",
            ],
            {"cxx": []},
            include_dirs=includes,
            library_dirs=libraries,
            libraries=["torch", "torch_cpu", "c10"],
            define_macros=[define(f"ROTNET_{name}", value) for name, value in build.items()],
        )
    ]
    if cuda_root is not None:
        found.append(
            KernelLibrary(
                f"rotnet_fast._C_cuda{cuda_major}",
                ["csrc/op_cuda.cpp", "csrc/cuda/rotate_cuda.cu", "csrc/cuda/warp_cuda.cu"],
                {"cxx": ["-DUSE_CUDA"], "nvcc": [*NVCC_FLAGS, *architectures]},
                include_dirs=[*includes, str(cuda_root / "include")],
                library_dirs=[*libraries, *(str(cuda_root / name) for name in ("lib64", "lib"))],
                # The static runtime: no second libcudart to find at run time.
                libraries=["torch", "torch_cpu", "torch_cuda", "c10", "cudart_static", "dl", "rt", "pthread"],
            )
        )
    return [*found, CoreModule(), *(CoreModule(*python) for python in other_pythons())]


def description() -> str:
    """README.md for the page of the package: relative links lead to ROTNET_URL, or become text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    address = os.environ.get("ROTNET_URL", "").rstrip("/")
    relative = r"\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)"
    if not address:
        text = re.sub(rf"!{relative}\n*", "", text)
        return re.sub(relative, r"\1", text)
    text = re.sub(rf"!{relative}", rf"![\1]({address}/raw/main/\2)", text)
    return re.sub(rf"(?<!!){relative}", rf"[\1]({address}/blob/main/\2)", text)


# setuptools asks for extensions to know that the wheel is not pure; BuildKernels replaces this list.
setup(
    long_description=description(),
    long_description_content_type="text/markdown",
    ext_modules=[Extension("rotnet_fast._core", ["csrc/core_module.cpp"])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": OneWheel},
)
