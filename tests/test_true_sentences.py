"""No error asks for what the caller has done already."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rotnet_fast import rotate_batch

IMAGES = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)

UINT8 = {
    "sparse": lambda: IMAGES.to_sparse(),
    "nested": lambda: torch.nested.nested_tensor(list(IMAGES), layout=torch.jagged),
    "of three dimensions": lambda: IMAGES[0],
    "channels first": lambda: torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
    "strided": lambda: IMAGES[::2],
    "without pixels": lambda: IMAGES[:, :0],
    "on meta": lambda: IMAGES.to("meta"),
    "grey": lambda: IMAGES[..., :1].contiguous(),
}


@pytest.mark.parametrize("make", UINT8.values(), ids=UINT8.keys())
def test_images_of_the_right_type_are_not_told_to_have_it(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"mean|images") as caught:
        rotate_batch(make())
    assert "uint8" not in str(caught.value)
