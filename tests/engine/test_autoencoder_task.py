"""The autoencoder restores images from the last feature map, and learns to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from rotnet_fast.data.loader import Batch
from rotnet_fast.data.resident import ResidentLoader
from rotnet_fast.data.split import Split
from rotnet_fast.engine.autoencoder_task import Autoencoder, AutoencoderTask
from rotnet_fast.engine.precision import Precision
from rotnet_fast.engine.schedule import Schedule
from rotnet_fast.engine.step import make_optimizer
from rotnet_fast.engine.task import TrainerSettings
from rotnet_fast.models.flops import multiply_adds
from rotnet_fast.models.nin import NetworkInNetwork

LABELS = torch.zeros(24, dtype=torch.int64)
ROWS = torch.arange(24)


def task(images: torch.Tensor, **changes: Any) -> AutoencoderTask:
    settings: dict[str, Any] = {
        "rotations": (0,),
        "seed": 3,
        "pad": 1,
        "flip_prob": 0.5,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "dtype": torch.float32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Autoencoder(blocks=3, width=0.05)
    loader = ResidentLoader(Split(images, LABELS), "cpu", 16, seed=0, shuffle=False)
    made = AutoencoderTask(network, Schedule(0.1), loader, **(settings | changes))
    made.begin_epoch(1)
    return made


def batch_of(images: torch.Tensor) -> Batch:
    return Batch(images, ROWS, LABELS, ROWS, False, 24)


NOISE = torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_what_is_to_be_restored_is_the_augmented_view_itself() -> None:
    of_task = task(NOISE)
    views, target = of_task.views(batch_of(NOISE))
    assert views.shape == (24, 3, 16, 16)  # one view per image
    assert torch.equal(views, target)
    views = views.clone()  # its buffer is used again
    plain, _ = of_task.plain_views(batch_of(NOISE))
    assert not torch.equal(views, plain)


def test_the_loss_is_the_mean_squared_error_of_normalised_pixels() -> None:
    of_task = task(NOISE)
    views, target = of_task.views(batch_of(NOISE))
    found = of_task.forward(views)
    output = of_task.loss(found, target)
    expected = functional.mse_loss(found["reconstruction"], views)
    torch.testing.assert_close(output.loss, expected)
    assert set(output.sums) == {"loss", "count"}
    torch.testing.assert_close(output.sums["loss"] / output.sums["count"], expected)


def test_the_test_error_is_that_of_plain_images_however_they_are_batched() -> None:
    of_task = task(NOISE)
    found = of_task.evaluate()
    plain, _ = of_task.plain_views(batch_of(NOISE))
    with torch.no_grad():
        expected = functional.mse_loss(of_task.module.eval()(plain), plain)
    assert found == {"loss": pytest.approx(expected.item(), rel=1e-5)}
    assert of_task.results(found) == {"reconstruction_error": found["loss"]}


def test_images_are_restored_from_what_tells_them_apart() -> None:
    # Stripes, upright or lying, in two colours: their mean, which needs no encoder, leaves most of the error.
    colours = torch.tensor([[230, 128, 30], [20, 60, 200]], dtype=torch.uint8)
    stripes = (torch.arange(16) // 4 % 2).expand(16, 16)
    patterns = torch.stack([colours[stripes], colours[stripes.T]])
    images = patterns.repeat(12, 1, 1, 1)
    of_task = task(images, pad=0, flip_prob=0.0)
    plain, _ = of_task.plain_views(batch_of(images))
    of_mean_image = functional.mse_loss(plain.mean(dim=0).expand_as(plain), plain).item()
    groups = of_task.parameter_groups()
    settings = TrainerSettings(epochs=1, precision=Precision("fp32", "cpu"))
    optimizer = make_optimizer(groups, [torch.tensor(0.01)], settings)
    of_task.begin_epoch(0)
    for _ in range(150):
        views, target = of_task.views(batch_of(images))
        optimizer.zero_grad()
        of_task.loss(of_task.forward(views), target).loss.backward()
        optimizer.step()
    assert of_task.evaluate()["loss"] < 0.1 * of_mean_image


def test_every_parameter_is_trained() -> None:
    of_task = task(NOISE)
    views, target = of_task.views(batch_of(NOISE))
    of_task.loss(of_task.forward(views), target).loss.backward()
    names = {name for name, parameter in of_task.module.named_parameters() if parameter.grad is not None}
    assert names == {name for name, _ in of_task.module.named_parameters()}
    assert not any(name.startswith("classifier") for name in names)
    (group,) = of_task.parameter_groups()
    assert len(group.parameters) == len(names)


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_without_its_decoder_it_is_a_network_without_a_classifier(blocks: int) -> None:
    whole = Autoencoder(blocks, 0.05, in_channels=1)
    encoder = NetworkInNetwork(0, blocks, 0.05, in_channels=1)
    names = [name for name in whole.state_dict() if not name.startswith("decoder.")]
    assert names == list(encoder.state_dict())
    assert whole(torch.zeros(2, 1, 20, 20)).shape == (2, 1, 20, 20)
    channels = encoder.feature_channels(encoder.layers[-1])
    assert encoder(torch.zeros(2, 1, 20, 20)).shape == (2, channels)


def test_the_decoder_of_the_full_width_costs_as_much_as_specified() -> None:
    with torch.device("meta"):
        network, image = Autoencoder().eval(), torch.zeros(1, 3, 32, 32)
        maps = network.features(image, ["conv4"])["conv4"]
        assert 85e6 < multiply_adds(lambda: network.decoder(maps)) < 87e6
