"""What traces of compression give away, measured by networks that look for nothing else, or not at all."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from analysis_inputs import fp32_views, random_images, small_network
from PIL import Image

from rotnet_fast.analysis.compression import VARIANTS, compressed, compression
from rotnet_fast.analysis.images import LabelledImages
from rotnet_fast.errors import ArgumentError
from rotnet_fast.plots.compression import NAMES, finding
from rotnet_fast.plots.compression import compression as draw

FOUR = (0, 90, 180, 270)


class LooksAtRoughness(torch.nn.Module):
    """Says 0 degrees where rows are rougher than columns, and 90 where columns are."""

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        along = views.diff(dim=3).abs().mean(dim=(1, 2, 3))
        across = views.diff(dim=2).abs().mean(dim=(1, 2, 3))
        return torch.stack([along, across], dim=1)


def noise(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def test_images_are_compressed_as_files_are() -> None:
    images = random_images(3, side=16)
    for image, again in zip(images, compressed(images, 40), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=40)
        assert np.array_equal(again.numpy(), np.asarray(Image.open(file)))
    grey = images[..., :1]
    assert compressed(grey, 40).shape == grey.shape


def test_a_network_that_sees_the_axes_of_the_compression_gains_by_them() -> None:
    found = compression(LooksAtRoughness(), noise(400), (0, 90), fp32_views(), quality=30)  # type: ignore[arg-type]
    accuracy = found["rotation"]["accuracy"]
    assert set(accuracy) == set(VARIANTS)
    worth, error = found["rotation"]["axis"]
    assert abs(worth) > 5 * error > 0
    assert accuracy["compressed"] - accuracy["both"] == pytest.approx(worth)
    assert accuracy["compressed"] - accuracy["across"] == pytest.approx(found["rotation"]["misled"][0])
    assert accuracy["turned first"] == pytest.approx(50, abs=8)  # the axes no longer turn with the view
    assert found["rotation"]["order"][0] == pytest.approx(accuracy["turned first"] - accuracy["plain"])


def test_numbers_equal_a_plain_computation() -> None:
    network, images = small_network().eval(), random_images(9, side=16)
    found = compression(network, images, FOUR, fp32_views(), quality=50)
    turned = [compressed(images.rot90(turn, (1, 2)), 50) for turn in range(4)]
    views = fp32_views()
    with torch.no_grad():
        hits = []
        for number, seen in enumerate(turned):
            logits = torch.cat([network(shown) for _, shown in views.plain(seen)])
            hits.append((logits.argmax(dim=1) == number).double().mean())
    expected = 100 * torch.stack(hits).mean().item()
    assert found["rotation"]["accuracy"]["turned first"] == pytest.approx(expected)
    assert "object" not in found
    json.dumps(found, allow_nan=False)


def test_objects_are_compared_where_there_are_labels() -> None:
    images = random_images(20, side=16)
    labels = torch.arange(20) % 2
    bank = LabelledImages(images, labels)
    network = small_network()
    found = compression(
        network, images, FOUR, fp32_views(), layer="conv2", queries=labels, bank=bank, classes=2
    )
    assert set(found["object"]["accuracy"]) == {"plain", "compressed", "both", "across"}
    assert len(found["object"]["axis"]) == 2


def test_other_rotations_and_shapes_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"rotations are 0 45; .* multiples of 90"):
        compression(small_network(), random_images(2), (0, 45), fp32_views())
    with pytest.raises(ArgumentError, match=r"images are 4 x 6; .* square images only"):
        compression(small_network(), torch.zeros(2, 4, 6, 3, dtype=torch.uint8), FOUR, fp32_views())


def test_the_figure_says_what_was_found() -> None:
    found = compression(small_network(), random_images(9, side=16), FOUR, fp32_views())
    found["rotation"]["axis"] = [1.25, 0.34]
    assert finding(found) == "The axes of JPEG compression are worth 1.25 ± 0.34 points of rotation accuracy"
    texts = [text.get_text() for text in draw(found).axes[0].get_yticklabels()]
    assert [text.replace("\n", " ") for text in texts] == list(NAMES.values())
    assert tuple(NAMES) == VARIANTS
