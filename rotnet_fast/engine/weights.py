"""Weights for others: safetensors files that are refused when damaged.

A file is safetensors, readable by everything that reads the format. Its metadata has, beside what the
caller gives, ``format`` (``pt``, as the field expects), ``rotnet_fast_format`` and ``sha256``: a digest over
the names, types, shapes and bits of all tensors and over all other metadata. safetensors alone does not
notice a flipped bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save

from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.checkpoint import state_hash
from rotnet_fast.errors import CheckpointError

FORMAT = "1"
FORMAT_KEY = "rotnet_fast_format"
DIGEST_KEY = "sha256"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON header
_ALIGNMENT = 8


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Content of a file: the same bytes for the same tensors and metadata.

    Args:
        tensors: on any device, of any strides; written contiguous, floating ones as float32.
        metadata: text about them; what :func:`unpack` gave can be packed again.
    """
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    described = {name: text for name, text in metadata.items() if name != DIGEST_KEY}
    described |= {"format": "pt", FORMAT_KEY: FORMAT}
    described[DIGEST_KEY] = digest(plain, described)
    content = save(plain)
    header, data = _split(content)
    # The library writes metadata in an order that changes from call to call.
    text = json.dumps({"__metadata__": described, **header}, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data


@plain_torch()
def unpack(content: bytes, origin: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors on the CPU and metadata of a file's content.

    Args:
        origin: where it was read from, for errors.

    Raises:
        CheckpointError: it is damaged, of another format, or not a file of this program.
    """
    try:
        tensors = load(content)
        metadata = _split(content)[0].get("__metadata__", {})
    except Exception as error:  # the parser and torch raise many types
        raise CheckpointError(
            f"{origin} is cut short, damaged or not a safetensors file ({error}); export the model again"
        ) from error
    if FORMAT_KEY not in metadata or DIGEST_KEY not in metadata:
        raise CheckpointError(
            f"{origin} holds weights of another program, or is damaged: its metadata has no {FORMAT_KEY} or "
            f"no {DIGEST_KEY}; give a file that python -m rotnet_fast.export wrote"
        )
    described = {name: text for name, text in metadata.items() if name != DIGEST_KEY}
    if digest(tensors, described) != metadata[DIGEST_KEY]:
        raise CheckpointError(
            f"{origin} is damaged: its SHA-256 digest does not match its weights and metadata; export the "
            f"model again"
        )
    if metadata[FORMAT_KEY] != FORMAT:
        raise CheckpointError(
            f"{origin} has format {metadata[FORMAT_KEY]}; this version of rotnet_fast reads format {FORMAT}"
        )
    return tensors, metadata


def digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 (hexadecimal) over tensors and metadata, in whatever order they come."""
    return state_hash({"tensors": dict(tensors), "metadata": dict(metadata)})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to("cpu")
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _split(content: bytes) -> tuple[dict[str, dict[str, str]], bytes]:
    """The header of a safetensors file, and what follows it."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header: dict[str, dict[str, str]] = json.loads(content[_LENGTH_BYTES:end])
    return header, content[end:]
