"""PEP 517 backend: setuptools, with the torch that is already installed.

Build isolation hides the target environment, so that a plain ``requires = ["torch"]`` would download
a second copy of several gigabytes for a build of seconds. This backend looks for torch in the target
environment and puts it on the build's path; only where there is none does it ask for torch. Any
torch from 2.10 on will do: the kernels use the stable ABI.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import site
import sys
import sysconfig
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

# As in pyproject.toml. pip upgrades a torch that is too old only after the build.
_OLDEST = (2, 10)
_TORCH = "torch>=2.10"
_SETUPTOOLS = 77

if int(setuptools.__version__.partition(".")[0]) < _SETUPTOOLS:  # unchecked under --no-build-isolation
    sys.exit(
        f"rotnet_fast: setuptools is {setuptools.__version__}; building needs {_SETUPTOOLS} or later: pip "
        "install -U setuptools"
    )


def _use_target_torch() -> bool:
    """Make the target environment's torch importable; say whether there is one that is new enough."""
    # Those of the base come with --system-site-packages; pip hides the user's own from this process.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    for folder in dict.fromkeys(folders):
        for found in importlib.metadata.distributions(name="torch", path=[folder]):
            release = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
            if release >= _OLDEST:
                # Last on the path: the build's own setuptools, ninja and pybind11 come first.
                if folder not in sys.path:
                    sys.path.append(folder)
                return True
    return False


def _requirements(setuptools_says: list[str]) -> list[str]:
    return setuptools_says if _use_target_torch() else [*setuptools_says, _TORCH]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_editable(config_settings))


def _check_tools() -> None:
    """Say what is missing where pip does not install it, with --no-build-isolation."""
    if not _use_target_torch() and importlib.util.find_spec("torch") is None:
        sys.exit(f"rotnet_fast: torch is not installed, and building needs it: pip install '{_TORCH}'")
    missing = [name for name in ("ninja", "pybind11") if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        sys.exit(f"rotnet_fast: building needs {' and '.join(missing)}: pip install {names}")


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    _check_tools()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    _check_tools()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
