"""What the ops of the data path take, as csrc/checks.h has it, too; and their defaults."""

from __future__ import annotations

import torch

MAX_ELEMENTS = 2**31 - 1
"""Of the views of one call."""

MAX_SIDE = 32767
"""Rows and columns of an image."""

MAX_PAD = 32767

VIEW_TYPES = (torch.float32, torch.bfloat16, torch.float16)
