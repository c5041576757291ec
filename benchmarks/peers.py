"""Other ways to do what ``rotate_batch`` does, written as well as each allows.

Every peer turns stored uint8 images [N,H,W,C] and indices [B] into views [B*4,C,H,W] (those of
``EIGHT_ROTATION_PEERS``: [B*8,C,H,W]), channels_last where that is natural for it, with the same
workload: gather, zero-pad 4 and random crop, random flip (both off in the plain workload), the
rotations, normalise, cast, labels. Peers draw with torch's own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.rotations import EIGHT_ROTATIONS

PAD = 4
Peer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
MakePeer = Callable[[bool, torch.dtype, torch.device], Peer]


def _labels(batch: int, device: torch.device, rotations: int = 4) -> torch.Tensor:
    return torch.arange(rotations, device=device).repeat(batch)


def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    std = torch.tensor(CIFAR10_STD, device=device)
    return 1 / (255 * std), -torch.tensor(CIFAR10_MEAN, device=device) / std


def _cropped(images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Batched crop and flip by one advanced index, uint8 [B,H,W,C]."""
    batch, device = len(indices), images.device
    height, width = images.shape[1:3]
    padded = functional.pad(images[indices], (0, 0, PAD, PAD, PAD, PAD))
    top = torch.randint(0, 2 * PAD + 1, (batch, 1, 1), device=device)
    left = torch.randint(0, 2 * PAD + 1, (batch, 1, 1), device=device)
    flip = torch.rand(batch, 1, 1, device=device) < 0.5
    rows = top + torch.arange(height, device=device)[None, :, None]
    columns = torch.arange(width, device=device)[None, None, :]
    columns = left + torch.where(flip, width - 1 - columns, columns)
    return padded[torch.arange(batch, device=device)[:, None, None], rows, columns]


def eager_uint8(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """torch.rot90 on uint8, stack, then normalise: moves the fewest bytes of the eager ways."""
    scale, shift = _constants(device)

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        upright = _cropped(images, indices) if augment else images[indices]
        views = torch.stack([torch.rot90(upright, k, (1, 2)) for k in range(4)], 1).flatten(0, 1)
        return (views * scale + shift).to(dtype).permute(0, 3, 1, 2), _labels(len(indices), images.device)

    return run


def eager_float(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """Normalise, torch.rot90, stack, channels_last: as it is mostly written."""
    scale, shift = _constants(device)

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        upright = _cropped(images, indices) if augment else images[indices]
        upright = (upright * scale + shift).to(dtype).permute(0, 3, 1, 2)
        views = torch.stack([torch.rot90(upright, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        return views.contiguous(memory_format=torch.channels_last), _labels(len(indices), images.device)

    return run


def gather(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """All index maps worked out first, then one gather: what a compiler fuses best."""
    scale, shift = _constants(device)

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, side = len(indices), images.shape[1]
        i = torch.arange(side, device=device)[:, None].expand(side, side)
        j = torch.arange(side, device=device)[None, :].expand(side, side)
        last = side - 1
        rows = torch.stack([i, j, last - i, last - j])[None]  # [1,4,H,W]
        columns = torch.stack([j, last - i, last - j, i])[None]
        if not augment:
            views = images[indices[:, None, None, None], rows, columns]  # [B,4,H,W,C]
        else:
            top = torch.randint(0, 2 * PAD + 1, (batch, 1, 1, 1), device=device)
            left = torch.randint(0, 2 * PAD + 1, (batch, 1, 1, 1), device=device)
            flip = torch.rand(batch, 1, 1, 1, device=device) < 0.5
            rows = rows + top - PAD
            columns = torch.where(flip, last - columns, columns) + left - PAD
            inside = (rows >= 0) & (rows <= last) & (columns >= 0) & (columns <= last)
            rows, columns = rows.clamp(0, last), columns.clamp(0, last)
            views = images[indices[:, None, None, None], rows, columns] * inside[..., None]
        views = (views * scale + shift).to(dtype).flatten(0, 1)
        return views.permute(0, 3, 1, 2), _labels(batch, device)

    return run


def compiled(make: MakePeer) -> MakePeer:
    """The same under torch.compile, for fixed shapes."""
    return lambda augment, dtype, device: torch.compile(make(augment, dtype, device), dynamic=False)


def torchvision_v2(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """torchvision.transforms.v2, image by image, as in a data set's __getitem__."""
    from torchvision.transforms import v2

    before = v2.Compose([v2.RandomCrop(32, padding=PAD), v2.RandomHorizontalFlip()])
    after = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(CIFAR10_MEAN, CIFAR10_STD)])

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if augment:
            before.transforms[0].size = images.shape[1:3]
        views = []
        for index in indices.tolist():
            image = images[index].permute(2, 0, 1)
            image = after(before(image) if augment else image)
            views += [torch.rot90(image, k, (1, 2)) for k in range(4)]
        batch = torch.stack(views).to(dtype).contiguous(memory_format=torch.channels_last)
        return batch, _labels(len(indices), images.device)

    return run


def kornia(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """kornia's batched augmentations, crops cut out and not sampled, then torch.rot90."""
    from kornia import augmentation, enhance

    normalise = enhance.Normalize(torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)).to(device)
    flip = augmentation.RandomHorizontalFlip(p=0.5)

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        upright = images[indices].permute(0, 3, 1, 2).float() / 255
        if augment:
            crop = augmentation.RandomCrop(images.shape[1:3], padding=PAD, cropping_mode="slice")
            upright = flip(crop(upright))
        upright = normalise(upright).to(dtype)
        views = torch.stack([torch.rot90(upright, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        return views.contiguous(memory_format=torch.channels_last), _labels(len(indices), device)

    return run


def numpy_per_image(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """Image by image in numpy, as the 2018 code does it in its data set class."""
    mean = np.array(CIFAR10_MEAN, dtype=np.float32)[:, None, None]
    std = np.array(CIFAR10_STD, dtype=np.float32)[:, None, None]

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stored, side = images.numpy(), images.shape[1]
        views = []
        for index in indices.tolist():
            image = stored[index]
            if augment:
                padded = np.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
                top, left = np.random.randint(0, 2 * PAD + 1, 2)
                image = padded[top : top + side, left : left + side]
                if np.random.random() < 0.5:
                    image = np.fliplr(image)
            quarter = np.flipud(np.transpose(image, (1, 0, 2)))
            half = np.fliplr(np.flipud(image))
            three_quarters = np.transpose(np.flipud(image), (1, 0, 2))
            for view in (image, quarter, half, three_quarters):
                scaled = np.ascontiguousarray(view.transpose(2, 0, 1)).astype(np.float32) / 255
                views.append(torch.from_numpy((scaled - mean) / std))
        return torch.stack(views).to(dtype), _labels(len(indices), images.device)

    return run


def grid_sample(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """Bilinear warp by torch's sampler: images side by side as channels, so that each of the eight grids,
    which are made once, is worked out once for the whole batch."""
    scale, shift = _constants(device)
    angles = torch.tensor(EIGHT_ROTATIONS, device=device) * (math.pi / 180)
    cos, sin = angles.cos() / math.sqrt(2), angles.sin() / math.sqrt(2)
    zero = torch.zeros_like(cos)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(8, 2, 3)
    grids: dict[int, torch.Tensor] = {}

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, side, channels = len(indices), images.shape[1], images.shape[3]
        if side not in grids:
            grids[side] = functional.affine_grid(theta, [8, 1, side, side], align_corners=False)
        upright = _cropped(images, indices) if augment else images[indices]
        stacked = (upright * scale + shift).permute(0, 3, 1, 2).reshape(1, batch * channels, side, side)
        turned = functional.grid_sample(
            stacked.expand(8, -1, -1, -1), grids[side], padding_mode="border", align_corners=False
        )
        views = turned.view(8, batch, channels, side, side).transpose(0, 1).flatten(0, 1).to(dtype)
        return views.contiguous(memory_format=torch.channels_last), _labels(batch, device, 8)

    return run


def torchvision_v2_affine(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """torchvision.transforms.v2.functional.affine, one call per rotation for the whole batch."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as v2

    scale, shift = _constants(device)

    def run(images: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        upright = _cropped(images, indices) if augment else images[indices]
        upright = (upright * scale + shift).permute(0, 3, 1, 2)
        views = [
            v2.affine(upright, -degrees, [0, 0], math.sqrt(2), [0, 0], InterpolationMode.BILINEAR)
            for degrees in EIGHT_ROTATIONS
        ]
        batch = torch.stack(views, 1).flatten(0, 1).to(dtype)
        return batch.contiguous(memory_format=torch.channels_last), _labels(len(indices), device, 8)

    return run


def triton_kernel(augment: bool, dtype: torch.dtype, device: torch.device) -> Peer:
    """One Triton kernel; see `benchmarks.triton_rotate`."""
    from benchmarks import triton_rotate

    return triton_rotate.triton_kernel(augment, dtype, device)


EIGHT_ROTATION_PEERS: dict[str, MakePeer] = {
    "torch grid_sample": grid_sample,
    "torch.compile, grid_sample": compiled(grid_sample),
    "torchvision v2 affine": torchvision_v2_affine,
}
PEERS: dict[str, MakePeer] = {
    "eager torch, rot90 on uint8": eager_uint8,
    "eager torch, rot90 on floats": eager_float,
    "torch.compile, rot90": compiled(eager_uint8),
    "torch.compile, one gather": compiled(gather),
    "kornia": kornia,
    "Triton, one kernel": triton_kernel,
    "torchvision v2 per image": torchvision_v2,
    "numpy per image": numpy_per_image,
}
CUDA_ONLY = ("Triton, one kernel",)
PER_IMAGE = ("torchvision v2 per image", "numpy per image")
