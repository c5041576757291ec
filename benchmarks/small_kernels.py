"""Every kind of CUDA kernel once, on small and odd shapes: for compute-sanitizer, which slows them down.

compute-sanitizer --tool memcheck --error-exitcode 99 python -m benchmarks.small_kernels
"""

from __future__ import annotations

import itertools
import sys

import torch

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.library import LIBRARIES
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

ROTATIONS = (FOUR_ROTATIONS, EIGHT_ROTATIONS, (180, 0))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIDES = (32, 33, 7)


def main() -> int:
    """Run all kernels and compare with the CPU; 0 where they agree, 2 where they cannot run."""
    if not torch.cuda.is_available():
        print("error: torch finds no CUDA device", file=sys.stderr)
        return 2
    if not LIBRARIES["cuda"].loaded:
        print(f"error: the CUDA kernels are not in use: {LIBRARIES['cuda'].detail}", file=sys.stderr)
        return 2
    generator = torch.Generator().manual_seed(0)
    calls = 0
    for rotations, dtype, channels, side in itertools.product(ROTATIONS, DTYPES, (1, 2, 3, 4), SIDES):
        shape = (5, side, side, channels)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        indices = torch.tensor([4, 0, 2, 2])
        settings = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "dtype": dtype, "seed": 1}
        expected, _ = rotate_batch(images, indices, rotations=rotations, **settings)
        found, _ = rotate_batch(images.cuda(), indices.cuda(), rotations=rotations, **settings)
        assert torch.equal(found.cpu(), expected), (rotations, dtype, channels, side)
        calls += 1
    print(f"{calls} calls agree with the CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
