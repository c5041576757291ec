"""Images to load, and other ways to load them, written as well as each allows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD

Batches = Iterator[torch.Tensor]
"""Endless uint8 [B,H,W,C] or [B,C,H,W], or float views [B*4,C,H,W]."""


def make_small(folder: Path, count: int = 4000) -> list[str]:
    """JPEGs of 32x32 pixels and about 900 bytes, like CIFAR-10's at quality 75: blurred blocks with noise."""
    rng = np.random.default_rng(0)
    return [_write(folder / f"{number:05d}.jpg", _texture(rng, 32, 32, 6), 75) for number in range(count)]


def make_large(folder: Path, height: int, width: int, count: int) -> list[str]:
    """JPEGs of quality 88, of about 0.25 bytes per pixel, like photographs."""
    rng = np.random.default_rng(1)
    return [
        _write(folder / f"{number:05d}.jpg", _texture(rng, height, width, 24), 88) for number in range(count)
    ]


def _texture(rng: np.random.Generator, height: int, width: int, cells: int) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    noisy = smooth + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _write(path: Path, image: Image.Image, quality: int) -> str:
    image.save(path, quality=quality)
    return str(path)


def cores() -> int:
    return len(os.sched_getaffinity(0))


class _Files(torch.utils.data.Dataset[torch.Tensor]):
    """Decodes a file with Pillow and transforms it."""

    def __init__(self, paths: list[str], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


class FourViews:
    """The released code's transform: flip, rotations in numpy, then normalisation, image by image."""

    def __init__(self) -> None:
        self.mean = np.array(CIFAR10_MEAN, dtype=np.float32)
        self.std = np.array(CIFAR10_STD, dtype=np.float32)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image)
        if np.random.random() < 0.5:
            pixels = pixels[:, ::-1]
        views = np.stack([np.rot90(pixels, turns) for turns in range(4)])
        normalised = (views.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(normalised.transpose(0, 3, 1, 2))


def data_loader(paths: list[str], batch: int, side: int | None, views: bool) -> Batches:
    """torch's DataLoader with a worker per core, Pillow, and torchvision's transforms.

    Args:
        paths: JPEG files.
        batch: images per batch.
        side: of random resized crops; None keeps images whole.
        views: make four normalised views of each image.
    """
    steps: list[Any] = [] if side is None else [transforms.RandomResizedCrop(side)]
    steps.append(FourViews() if views else transforms.PILToTensor())
    loader = torch.utils.data.DataLoader(
        _Files(paths, transforms.Compose(steps)),
        batch_size=batch,
        shuffle=True,
        num_workers=cores(),
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",  # forked beside the threads of DALI and OpenMP, workers may hang
    )
    while True:
        for made in loader:
            yield made.flatten(0, 1) if views else made


def dali_views(paths: list[str], batch: int, side: int | None) -> Batches:
    """DALI alone: its own file reader and order, decoding, crops, flips, rotations and normalisation.

    A quarter turn is a transposition and a flip, on uint8; the views are normalised to channels-last floats.
    """
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=batch, num_threads=cores(), device_id=None, prefetch_queue_depth=2)
    with pipeline:
        encoded, _ = fn.readers.file(files=paths, random_shuffle=True)
        if side is None:
            images = fn.decoders.image(encoded, output_type=types.RGB)
        else:
            images = fn.decoders.image_random_crop(encoded, output_type=types.RGB)
            images = fn.resize(images, size=(side, side), interp_type=types.INTERP_LINEAR, antialias=True)
        upright = fn.flip(images, horizontal=fn.random.coin_flip())
        turned = fn.transpose(upright, perm=[1, 0, 2], transpose_layout=False)
        turns = (
            upright,
            fn.flip(turned, horizontal=0, vertical=1),
            fn.flip(upright, horizontal=1, vertical=1),
            fn.flip(turned, horizontal=1),
        )
        views = [
            fn.crop_mirror_normalize(
                view,
                dtype=types.FLOAT,
                output_layout="HWC",
                mean=[255 * value for value in CIFAR10_MEAN],
                std=[255 * value for value in CIFAR10_STD],
            )
            for view in turns
        ]
        pipeline.set_outputs(*views)
    pipeline.build()
    while True:
        made = [torch.from_dlpack(part.as_tensor()) for part in pipeline.run()]
        yield torch.cat(made).permute(0, 3, 1, 2)


def epochs_of(loader: Any) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)
