"""The images that `Backbone.embed` takes, made into batches of the form in which the network was trained.

Folders and lists of paths are decoded, and images of every kind are fitted to the network's size, by the code
that decodes and fits the files of ``python -m rotnet_fast.embed`` and of an evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rotnet_fast.data.decode import fit_image, upright_rgb
from rotnet_fast.data.every_image import decoded_batches, open_every_image, pillow_batches
from rotnet_fast.data.source import FileSource
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import named
from rotnet_fast.image_layout import Layout, channels_last, check_layout
from rotnet_fast.plain import shown

Images = (
    str
    | os.PathLike[str]
    | Sequence[str | os.PathLike[str]]
    | Sequence[Image.Image]
    | torch.Tensor
    | NDArray[np.uint8]
)
"""A folder, a list of paths or of PIL images, or uint8 images [N,H,W,3] or [N,3,H,W]."""

_ACCEPTED = "a folder, a list of paths, a list of PIL images, or uint8 images [N,H,W,3] or [N,3,H,W]"


def image_batches(
    what: Images, image_size: int, is_cropped: bool, batch_size: int, layout: Layout | None = None
) -> Iterator[torch.Tensor]:
    """Make images into batches, in the given order; those of a folder are sorted by path.

    Args:
        what: the images, see ``Images``.
        image_size, is_cropped: how to fit them, see `rotnet_fast.data.decode.fit_image`.
        batch_size: images per batch; the last one may be smaller.
        layout: order of the dimensions of an array or tensor. None: told from which one has 3 channels.

    Yields:
        uint8 [B,image_size,image_size,3].

    Raises:
        TypeError: what, an item of it or its dtype is of the wrong kind (raised by this call).
        ArgumentError: what is empty, of the wrong shape or ambiguous (raised by this call).
        DataError: a file or folder is missing, or an image cannot be decoded.
    """
    check_layout(layout)
    if isinstance(what, np.ndarray) and what.ndim == 1 and what.dtype.kind in "UO":
        what = what.tolist()  # paths, for example
    if isinstance(what, (torch.Tensor, np.ndarray)):
        images = _checked_array(what, layout)
        return (
            _fitted(map(Image.fromarray, images[start : start + batch_size]), image_size, is_cropped)
            for start in range(0, len(images), batch_size)
        )
    if layout is not None:
        raise ArgumentError(f"layout is {layout}, which only applies to arrays and tensors; remove it")
    if isinstance(what, (str, os.PathLike)):
        folder = _checked_folder(what)
        files = open_every_image(folder, image_size, progress=False).files
        return decoded_batches(files, batch_size, is_cropped=is_cropped)
    if isinstance(what, Image.Image):
        raise TypeError("what is a single PIL image; pass a list of them: [image]")
    if not isinstance(what, Sequence) or isinstance(what, bytes):
        raise TypeError(f"what is {shown(what)}; it must be {_ACCEPTED}")
    if len(what) == 0:
        raise ArgumentError("what is empty; pass at least one image")
    if all(isinstance(item, Image.Image) for item in what):
        return (
            _fitted(_upright(what, range(start, min(start + batch_size, len(what)))), image_size, is_cropped)
            for start in range(0, len(what), batch_size)
        )
    if all(isinstance(item, (str, os.PathLike)) for item in what):
        return pillow_batches(_source_of(what), image_size, batch_size, is_cropped=is_cropped)
    raise TypeError(_about_items(what))


def _about_items(what: Sequence[Any]) -> str:
    """Return the sentence about a list that holds neither only paths nor only PIL images."""
    kinds = ["path" if isinstance(item, (str, os.PathLike)) else type(item).__name__ for item in what]
    if len(set(kinds)) > 1:
        other = next(position for position, kind in enumerate(kinds) if kind != kinds[0])
        return f"what mixes {kinds[0]} at 0 and {kinds[other]} at {other}; pass images of one kind"
    remedy = f"it must be {_ACCEPTED}"
    if isinstance(what[0], np.ndarray):
        remedy = "stack arrays of one size with np.stack, or convert them with PIL.Image.fromarray"
    elif isinstance(what[0], torch.Tensor):
        remedy = "stack tensors of one size with torch.stack"
    return f"what is a list of {kinds[0]}; {remedy}"


def _checked_folder(what: str | os.PathLike[str]) -> Path:
    folder = named(what, "what")
    if folder.is_file():
        raise ArgumentError(f"what is {folder}, a file; pass a folder, or a list of paths: [path]")
    if not folder.exists():
        raise DataError(f"what is {folder}, which does not exist; pass a folder of images")
    return folder


def _source_of(paths: Sequence[Any]) -> FileSource:
    """Return the files of a list of paths."""
    names = [os.fspath(named(path, "a path in what")) for path in paths]
    sizes = np.empty(len(names), dtype=np.int64)
    for position, name in enumerate(names):
        if not os.path.isfile(name):
            state = "is not a file" if os.path.exists(name) else "does not exist"
            raise DataError(f"what holds {name} at {position}, which {state}; pass paths of image files")
        sizes[position] = os.stat(name).st_size
    return FileSource("", names, sizes)


def _checked_array(what: torch.Tensor | NDArray[Any], layout: Layout | None) -> NDArray[np.uint8]:
    """Return images as uint8 [N,H,W,3] that shares their memory."""
    if what.dtype not in (torch.uint8, np.dtype(np.uint8)):
        convert = "to(torch.uint8)" if isinstance(what, torch.Tensor) else "astype('uint8')"
        raise TypeError(
            f"what is {shown(what)}; pass uint8 images with values 0..255, or convert values in 0..1 by "
            f"(255 * what).round().{convert}"
        )
    images = channels_last(what, layout, "what")
    if 0 in what.shape:
        raise ArgumentError(f"what has the shape {list(what.shape)}, which is empty; pass at least one image")
    found: NDArray[np.uint8] = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else images
    return found


def _upright(images: Sequence[Any], positions: Iterable[int]) -> Iterator[Image.Image]:
    return (upright_rgb(images[position], f"what[{position}]") for position in positions)


def _fitted(images: Iterable[Image.Image], image_size: int, is_cropped: bool) -> torch.Tensor:
    """Fit RGB images and stack them: uint8 [B,image_size,image_size,3]."""
    return torch.from_numpy(np.stack([fit_image(image, image_size, is_cropped) for image in images]))
