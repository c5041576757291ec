"""Images that a program gives: an array, a tensor, or a data set of torch's kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from rotnet_fast.data.datasets import Dataset, choose_in_memory, make_dataset
from rotnet_fast.data.decode import fit_image, upright_rgb
from rotnet_fast.data.layout import held_out
from rotnet_fast.data.loaders import RESIDENT_SHARE, free_memory
from rotnet_fast.data.split import RawDataset, Split
from rotnet_fast.errors import ArgumentError
from rotnet_fast.image_layout import Layout, channels_last, check_layout
from rotnet_fast.plain import as_whole, counted, shown
from rotnet_fast.progress import CountingLine

NAME = "folder"
"""Name under which a run on such images is recorded: it is one like those on a folder of the same images."""

_ACCEPTED = "uint8 images [N,H,W,3] or [N,3,H,W], a map-style data set of torch, or a list of images"

_REMEDY_OF_SIZES = "pass image_size, the height and width that all images are resized and cropped to"


@dataclass(frozen=True)
class OwnImages:
    """Images that are read into memory when they are needed; made by :func:`own_images`.

    Attributes:
        train, test: an array or tensor, or a sequence of images; without test images, some of the training
            images are held out.
        image_size: H = W in pixels.
        is_resized: whether images of other sizes are resized to that, rather than refused.
        layout: that of arrays and tensors.
    """

    train: Any
    test: Any
    image_size: int
    is_resized: bool
    layout: Layout | None

    def read(
        self,
        limit_train: int | None,
        limit_test: int | None,
        validation: int | None,
        display_name: str | None,
        progress: bool,
    ) -> Dataset[Any]:
        """Read all images, each once, into memory.

        Args:
            limit_train, limit_test, validation, display_name: see `load_dataset`.
            progress: show how far this is, and print what is used.

        Raises:
            ArgumentError, TypeError: an image is unusable, or there are too many for the memory.
            DataError: an image has no 8 bits per channel.
        """
        images, labels = self._pixels(self.train, "dataset", progress)
        if self.test is None:
            is_test = held_out(np.zeros_like(labels))  # labels change nothing but what is monitored
            train, test = ((images[rows], labels[rows]) for rows in (~is_test, is_test))
        else:
            train, test = (images, labels), self._pixels(self.test, "test", progress)
        classes, of_all = _classes(np.concatenate([train[1], test[1]]), getattr(self.train, "classes", None))
        of_train, of_test = torch.from_numpy(of_all).split([len(train[1]), len(test[1])])
        halves = Split(torch.from_numpy(train[0]), of_train), Split(torch.from_numpy(test[0]), of_test)
        raw = RawDataset("own images", classes, *halves, held_out=self.test is None)
        chosen = choose_in_memory(raw, limit_train, limit_test, validation)
        return make_dataset(NAME, chosen, progress, display_name)

    def _pixels(self, given: Any, name: str, progress: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return uint8 [N,image_size,image_size,3], and labels int64 [N], -1 where there are none."""
        size, count = self.image_size, len(given)
        pixels = np.empty((count, size, size, 3), dtype=np.uint8)
        labels = np.empty(count, dtype=np.int64)
        with CountingLine("reading images", count, "images", progress) as line:
            for number in range(count):
                image, label = _image(given, number, name, self.layout)
                if not self.is_resized and image.size != (size, size):
                    raise ArgumentError(
                        f"{name}[{number}] has {image.height} x {image.width} pixels, and dataset[0] has "
                        f"{size} x {size}; {_REMEDY_OF_SIZES}"
                    )
                pixels[number] = fit_image(image, size)
                labels[number] = -1 if label is None else label
                line.count(1)
        return pixels, labels


def _classes(labels: NDArray[np.int64], names: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return class names and labels from 0; none, and zeros, unless every image has a label.

    Args:
        labels: int64 [N], -1 where there are none.
        names: class names by label, as data sets of torchvision have them; anything else is ignored.
    """
    if labels.min() < 0:
        return (), np.zeros_like(labels)
    if isinstance(names, (list, tuple)) and labels.max() < len(names):
        return tuple(map(str, names)), labels
    values, numbers = np.unique(labels, return_inverse=True)
    return tuple(map(str, values.tolist())), numbers.astype(np.int64)


def own_images(
    dataset: Any, test: Any = None, image_size: int | None = None, layout: Layout | None = None
) -> OwnImages:
    """Check images, as far as a look at their first one tells, without reading all of them.

    Args:
        dataset: uint8 [N,H,W,3] or [N,3,H,W]; or a map-style data set, or a list, of PIL images of any sizes
            or of uint8 images [H,W,3] or [3,H,W]; an item may also be a tuple of an image and a label.
        test: images to test on, of the same kinds; None holds out every 20th image.
        image_size: H = W in pixels that all are resized to; None: they are square and of one size.
        layout: of arrays and tensors; None: told from which dimension is 3.

    Raises:
        ArgumentError, TypeError: the images are unusable, or too many for the memory.
        DataError: the first image has no 8 bits per channel.
    """
    check_layout(layout)
    found = [_checked(dataset, "dataset", layout)]
    if len(found[0]) == 1 and test is None:
        raise ArgumentError("dataset holds one image; at least two are needed, one of them to test on")
    if test is not None:
        found.append(_checked(test, "test", layout))
    is_resized = image_size is not None
    if image_size is None:
        image_size = _common_size(found, layout)
    bytes_needed, free = sum(map(len, found)) * image_size**2 * 3, free_memory(torch.device("cpu"))
    if free is not None and bytes_needed > RESIDENT_SHARE * free:
        raise ArgumentError(
            f"dataset takes {bytes_needed / 1e9:.1f} GB in memory as images of {image_size} pixels, and "
            f"{free / 1e9:.1f} GB are free; save it as image files and pass their folder, which is streamed"
        )
    return OwnImages(found[0], None if test is None else found[1], image_size, is_resized, layout)


def _checked(given: Any, name: str, layout: Layout | None) -> Any:
    """Return an array or tensor as [N,H,W,3], and anything else as it is."""
    if isinstance(given, DataLoader):
        raise TypeError(f"{name} is a DataLoader; pass its data set: {name}.dataset")
    if isinstance(given, IterableDataset):
        raise TypeError(
            f"{name} is {type(given).__name__}, an IterableDataset, whose images have no numbers; pass a "
            f"map-style data set, with __getitem__ and __len__, or a list of images"
        )
    if isinstance(given, (np.ndarray, torch.Tensor)):
        _check_is_uint8(given, name)
        given = channels_last(given, layout, name)
    elif isinstance(given, tuple) and all(isinstance(one, (np.ndarray, torch.Tensor)) for one in given):
        raise TypeError(
            f"{name} is a tuple of {counted(len(given), 'array')}; of images and labels, make a data set: "
            f"torch.utils.data.TensorDataset(images, labels)"
        )
    elif isinstance(given, (dict, str, bytes)) or not (
        hasattr(given, "__getitem__") and hasattr(given, "__len__")
    ):
        raise TypeError(f"{name} is {shown(given)}; it must be {_ACCEPTED}")
    if len(given) == 0:
        raise ArgumentError(f"{name} is empty; pass images")
    return given


def _common_size(found: Iterable[Any], layout: Layout | None) -> int:
    """Return H = W of the images, judged by the first ones, and by all where they are stacked."""
    sizes = {}
    for given, name in zip(found, ("dataset", "test"), strict=False):
        sizes[name] = _image(given, 0, name, layout)[0].size
    (width, height), *others = sizes.values()
    if width != height or others not in ([], [(width, height)]):
        said = ", and ".join(f"{name}[0] has {high} x {wide} pixels" for name, (wide, high) in sizes.items())
        raise ArgumentError(f"{said}; {_REMEDY_OF_SIZES}")
    return width


def _image(given: Any, number: int, name: str, layout: Layout | None) -> tuple[Image.Image, int | None]:
    """Return an image in RGB, and its label if it has one."""
    item, label, called = given[number], None, f"{name}[{number}]"
    if isinstance(item, (tuple, list)) and len(item) > 0:
        label = as_whole(item[1]) if len(item) > 1 else None
        item = item[0]
    if isinstance(item, Image.Image):
        return upright_rgb(item, called), label
    if isinstance(item, Mapping):
        keys = ", ".join(map(repr, item))
        raise TypeError(
            f"{called} is a dictionary of {keys}; pass the images alone, such as {name}['image'], or "
            f"[(row['image'], row['label']) for row in {name}]"
        )
    if not isinstance(item, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"{called} is {shown(item)}; an item must be a PIL image or a uint8 image [H,W,3] or [3,H,W], or "
            f"a tuple of one and its label"
        )
    _check_is_uint8(item, called)
    is_stacked = isinstance(given, (np.ndarray, torch.Tensor))  # which channels_last has seen already
    pixels = item if is_stacked else channels_last(item, layout, called, is_single=True)
    array = pixels.detach().cpu().numpy() if isinstance(pixels, torch.Tensor) else pixels
    return Image.fromarray(np.ascontiguousarray(array)), label


def _check_is_uint8(given: Any, name: str) -> None:
    if given.dtype not in (torch.uint8, np.dtype(np.uint8)):
        raise TypeError(
            f"{name} is {shown(given)}; pass uint8 images with values 0..255 as they are stored, without "
            f"ToTensor() and normalisation, which the training does itself"
        )
