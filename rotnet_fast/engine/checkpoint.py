"""Checkpoints and exported weights: written atomically, refused when damaged.

A checkpoint holds all that a resume needs. The file is what ``torch.save`` writes, followed by a trailer of
one line::

    \\nrotnet_fast checkpoint 1 sha256 <64 hex digits>\\n

The digest covers everything before the trailer. ``torch.load`` alone does not notice a flipped bit; it still
opens these files, as it searches for the zip directory from the end.

Exported weights are for others, in safetensors files that any reader of the format opens. Beside what the
caller adds, their metadata hold ``format`` (``pt``, as the field expects), ``rotnet_fast_format`` and
``sha256``: a digest of the names, dtypes, shapes and bits of all tensors and of all other metadata.
safetensors alone does not notice a flipped bit either.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.run_folder import candidates
from rotnet_fast.errors import CheckpointError
from rotnet_fast.files import named, write_atomically
from rotnet_fast.memory import is_out_of_memory
from rotnet_fast.plain import counted

_TRAILER = "\nrotnet_fast checkpoint 1 sha256 {digest}\n"
_TRAILER_PATTERN = re.compile(rb"\nrotnet_fast checkpoint (\d+) sha256 ([0-9a-f]{64})\n")
_TRAILER_BYTES = len(_TRAILER.format(digest="0" * 64))

_GIVE_A_RUN = "give a run folder of python -m rotnet_fast.pretrain, or a file of its checkpoints/"

_log = logging.getLogger("rotnet_fast")


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to make or replace.
        state: nested dictionaries, lists and tuples of tensors, numbers, strings and None.

    Raises:
        CannotWriteError: the file cannot be written; an older one at ``path`` is intact.
    """
    # Save to memory first: on a full disk, torch.save raises an error that hides the cause.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(_TRAILER.format(digest=digest).encode())
    write_atomically(path, buffer.getbuffer())


@plain_torch()
def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Nothing is parsed before its digest has been verified.

    Returns:
        The saved state, with all tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged, or not a checkpoint of this package.
        MemoryError, RuntimeError: there is not enough memory, which says nothing about the file.
    """
    path = named(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    trailer = _TRAILER_PATTERN.fullmatch(content[-_TRAILER_BYTES:])
    if trailer is None and content[8:10] == b'{"':  # as a safetensors file has it
        raise CheckpointError(
            f"the checkpoint {path} holds exported weights, which rotnet_fast.load_backbone loads; "
            f"{_GIVE_A_RUN}"
        )
    if trailer is None:
        raise CheckpointError(
            f"the checkpoint {path} is truncated, damaged or not a checkpoint of rotnet_fast: its last line, "
            f"with the SHA-256 digest, is missing; {_GIVE_A_RUN}"
        )
    body = memoryview(content)[:-_TRAILER_BYTES]
    if hashlib.sha256(body).hexdigest().encode() != trailer[2]:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: its SHA-256 digest does not match its content; use an older "
            f"one from the same folder"
        )
    if trailer[1] != b"1":
        raise CheckpointError(
            f"the checkpoint {path} has format {trailer[1].decode()}; this version of rotnet_fast reads "
            f"format 1"
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"the checkpoint {path} holds something other than tensors and plain values; {_GIVE_A_RUN}"
        ) from error
    return state


def load_newest(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read one checkpoint, or the newest intact one of a run folder.

    Each damaged checkpoint that is skipped is logged as a warning.

    Args:
        path: a checkpoint file or a run folder.

    Returns:
        The file that was read, and the state.

    Raises:
        CheckpointError: there is no checkpoint, or all are damaged.
    """
    path = named(path)
    if not path.is_dir():
        return path, load(path)
    skipped: list[CheckpointError] = []
    for candidate in candidates(path):
        try:
            state = load(candidate)
        except CheckpointError as error:
            skipped.append(error)
            continue
        for reason in skipped:
            _log.warning("%s; using an older one", reason)
        return candidate, state
    if skipped:
        raise CheckpointError(
            f"{path} has {counted(len(skipped), 'checkpoint')}, but none that is usable; the newest: "
            f"{str(skipped[0]).removesuffix(f'; {_GIVE_A_RUN}')}; start again with another --output"
        )
    raise CheckpointError(f"there is no checkpoint in {path / 'checkpoints'}; {_GIVE_A_RUN}")


def refusal(saved: Mapping[str, Any], identity: Mapping[str, Any], origin: Path) -> CheckpointError | None:
    """Make the error for a run that cannot be resumed from a checkpoint; None if it can be.

    Args:
        saved, identity: the settings that define a run, in the checkpoint and now. The error names all
            differences.
        origin: file of the checkpoint.
    """
    names = sorted(name for name in saved.keys() | identity.keys() if saved.get(name) != identity.get(name))
    if "data_contents" in names and None in (saved.get("data_contents"), identity.get("data_contents")):
        names.remove("data_contents")  # images in memory have none
    if not names:
        return None
    fingerprints = [str(values.get("data_fingerprint")) for values in (saved, identity)]
    loaders = ["dali" if fingerprint.startswith("files:") else "resident" for fingerprint in fingerprints]
    if "data_fingerprint" in names and loaders[0] != loaders[1]:
        return CheckpointError(
            f"the checkpoint {origin} was made with --loader {loaders[0]}, and this run uses {loaders[1]}; "
            f"remove --loader to resume it, or start a new run with another --output"
        )
    if names == ["data_contents"]:
        return CheckpointError(
            f"the checkpoint {origin} is of a run on other images: the content of files has changed, but not "
            f"their names and lengths; restore them, or start a new run with another --output"
        )
    differences = ", ".join(
        f"{name} is {_shown(saved.get(name))} there and {_shown(identity.get(name))} here" for name in names
    )
    return CheckpointError(
        f"the checkpoint {origin} belongs to another run: {differences}; use the run's values, or start a "
        f"new run with another --output"
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else repr(value)


def all_finite(state: Any) -> bool:
    """Whether every tensor of a nested state is finite; waits for the device once."""
    verdicts = [tensor.isfinite().all() for tensor in _tensors(state)]
    return not verdicts or bool(torch.stack(verdicts).all())


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for part in state.values():
            yield from _tensors(part)
    elif isinstance(state, (list, tuple)):
        for part in state:
            yield from _tensors(part)


def state_hash(state: Any) -> str:
    """SHA-256 over a nested state, equal exactly if keys, types, values and all tensor bits are equal.

    Args:
        state: what :func:`save` accepts. Neither the order of a dictionary's keys nor a tensor's device and
            strides matter.

    Returns:
        64 hex digits.

    Raises:
        TypeError: a value that a checkpoint cannot hold.
    """
    digest = hashlib.sha256()
    _update(digest, state)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Feed ``value`` with its type and length, so that different states never give the same bytes."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().to("cpu").contiguous().flatten().view(torch.uint8)
        digest.update(f"tensor {value.dtype} {list(value.shape)} ".encode())
        digest.update(flat.numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)} ".encode())
        for key in sorted(value, key=repr):
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            _update(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value).encode()  # repr of a float is exact
        digest.update(f"{type(value).__name__} {len(text)} ".encode() + text)
    else:
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


WEIGHTS_FORMAT = "1"
WEIGHTS_FORMAT_KEY = "rotnet_fast_format"
WEIGHTS_DIGEST_KEY = "sha256"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
_ALIGNMENT = 8


def pack_weights(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Make the content of a safetensors file: the same bytes for the same tensors and metadata.

    Args:
        tensors: tensors on any device with any strides; written contiguous, floating-point ones as fp32.
        metadata: text about them; what :func:`unpack_weights` returned can be packed again.
    """
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    described = {name: text for name, text in metadata.items() if name != WEIGHTS_DIGEST_KEY}
    described |= {"format": "pt", WEIGHTS_FORMAT_KEY: WEIGHTS_FORMAT}
    described[WEIGHTS_DIGEST_KEY] = weights_digest(plain, described)
    content = safetensors.torch.save(plain)
    header, data = _split(content)
    # Sorted, because the library writes metadata in an order that changes from call to call.
    text = json.dumps({"__metadata__": described, **header}, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data


@plain_torch()
def unpack_weights(content: bytes, origin: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors (on the CPU) and metadata from the content of a safetensors file.

    Args:
        content: what :func:`pack_weights` made.
        origin: file that it was read from, for errors.

    Raises:
        CheckpointError: the content is damaged, of another format, or not from this package.
    """
    try:
        tensors = safetensors.torch.load(content)
        metadata = _split(content)[0].get("__metadata__", {})
    except Exception as error:  # the parser and torch raise many types
        raise CheckpointError(
            f"{origin} is truncated, damaged or not a safetensors file ({error}); export the model again"
        ) from error
    if WEIGHTS_FORMAT_KEY not in metadata or WEIGHTS_DIGEST_KEY not in metadata:
        raise CheckpointError(
            f"{origin} holds weights of another program, or is damaged: its metadata has no "
            f"{WEIGHTS_FORMAT_KEY} or no {WEIGHTS_DIGEST_KEY}; give a file that python -m rotnet_fast.export "
            f"wrote"
        )
    described = {name: text for name, text in metadata.items() if name != WEIGHTS_DIGEST_KEY}
    if weights_digest(tensors, described) != metadata[WEIGHTS_DIGEST_KEY]:
        raise CheckpointError(
            f"{origin} is damaged: its SHA-256 digest does not match its weights and metadata; export the "
            f"model again"
        )
    if metadata[WEIGHTS_FORMAT_KEY] != WEIGHTS_FORMAT:
        raise CheckpointError(
            f"{origin} has format {metadata[WEIGHTS_FORMAT_KEY]}; this version of rotnet_fast reads format "
            f"{WEIGHTS_FORMAT}"
        )
    return tensors, metadata


def weights_digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) over tensors and metadata, independent of their order."""
    return state_hash({"tensors": dict(tensors), "metadata": dict(metadata)})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to("cpu")
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _split(content: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    """Split the content of a safetensors file into its header and the data that follow."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header: dict[str, dict[str, str]] = json.loads(content[_LENGTH_BYTES:end])
    return header, content[end:]
