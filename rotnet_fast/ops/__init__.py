"""Fused rotate-and-batch op, its plain-torch reference and the loader of the compiled kernels."""

from rotnet_fast.ops.rotate import augmentation_draws, rotate_batch

__all__ = ["augmentation_draws", "rotate_batch"]
