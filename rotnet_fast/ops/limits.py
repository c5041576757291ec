"""Limits of the ops of the data path, the same as in csrc/checks.h."""

from __future__ import annotations

import torch

MAX_ELEMENTS = 2**31 - 1
"""Largest number of elements in the views of one call."""

MAX_SIDE = 32767
"""Largest number of rows and of columns of an image."""

MAX_PAD = 32767

VIEW_TYPES = (torch.float32, torch.bfloat16, torch.float16)
