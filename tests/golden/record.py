"""Record what the released code of RotNet does, as figures that tests compare this project with.

    git clone https://github.com/gidariss/FeatureLearningRotNet
    git -C FeatureLearningRotNet checkout edafaba
    python tests/golden/record.py FeatureLearningRotNet

writes tests/golden/released_code.json. The released code is for Python 2.7 and torch 0.2. What it needs under
Python 3 and torch 2 is done to the text of its files as they are read; nothing of it is copied here:

- tabs among spaces become spaces;
- a padding is a quotient of integers: ``/2`` becomes ``//2``;
- BatchNorm of vectors is ``BatchNorm1d``, since ``BatchNorm2d`` no longer takes two dimensions. It is
  initialised by the same default, 1 and 0, which the released loop over ``BatchNorm2d`` sets again.

Its training loop is not run (``xrange``, ``Variable``, ``volatile``, ``loss.data[0]`` and torchnet would need
stand-ins): a step is the four lines that it consists of, with the networks, criterion and optimiser settings
of its configurations. Its images come through ``rotate_img`` and its ``transforms``; crops and flips are made
by the same torchvision functions that its random transforms call, with the draws given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional

OUTPUT = Path(__file__).with_name("released_code.json")
REVISION = "edafaba"
IMAGES, SEED, EPOCH, PAD = 8, 3, 1, 4
STEPS = 3
MEAN, STD = [125.3 / 255, 123.0 / 255, 113.9 / 255], [63.0 / 255, 62.1 / 255, 66.7 / 255]


def images() -> torch.Tensor:
    """The images that everything is recorded on: smooth, and different in every turn, uint8 [N,32,32,3]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 5, 5, generator=generator, dtype=torch.float64)
    fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear", align_corners=True)
    return (255 * fine).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def labels() -> torch.Tensor:
    """An object class for each image, int64 [N]."""
    return torch.arange(IMAGES) * 3 % 10


def sha256(*arrays: torch.Tensor) -> str:
    """Of the bytes of tensors, one after another."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def summary(values: torch.Tensor) -> dict[str, Any]:
    """Shape, mean, deviation and 12 spread values of a tensor, by which another is recognised."""
    flat = values.detach().double().flatten()
    places = torch.linspace(0, len(flat) - 1, 12).long()
    return {
        "shape": list(values.shape),
        "mean": flat.mean().item(),
        "deviation": flat.std().item(),
        "values": flat[places].tolist(),
    }


class ReleasedCode:
    """A checkout of the released code, whose files are read as modules.

    Args:
        folder: the checkout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, path: str) -> types.ModuleType:
        """Run a file with the changes that the top of this file names."""
        text = (self.folder / path).read_text().expandtabs(8)
        text = text.replace("(kernel_size-1)/2", "(kernel_size-1)//2")
        text = re.sub(r"nn\.BatchNorm2d\(nFeats\)", "nn.BatchNorm1d(nFeats)", text)
        for absent in ("import torchnet as tnt\n", "from Places205 import Places205\n"):
            text = text.replace(absent, "")
        module = types.ModuleType(Path(path).stem)
        exec(compile(text, path, "exec"), module.__dict__)
        return module

    def config(self, name: str) -> dict[str, Any]:
        """One of its configurations."""
        found: dict[str, Any] = self.module(f"config/{name}.py").config
        return found

    def configurations(self) -> list[str]:
        """Names of the configurations for CIFAR-10."""
        return sorted(path.stem for path in (self.folder / "config").glob("CIFAR10_*.py"))


def draws(crops_and_flips: Any) -> list[tuple[int, int, bool]]:
    """Top, left and flip of each image, from this project's generator."""
    top, left, flip = crops_and_flips(torch.arange(IMAGES), SEED, EPOCH, PAD, 0.5)
    return list(zip(top.tolist(), left.tolist(), flip.tolist(), strict=True))


def released_views(code: ReleasedCode, given: list[tuple[int, int, bool]]) -> torch.Tensor:
    """The four views of every image, through the released code's functions, fp32 [N*4,3,32,32]."""
    loader = code.module("dataloader.py")
    normalise = loader.transforms.Compose(
        [loader.transforms.ToTensor(), loader.transforms.Normalize(mean=MEAN, std=STD)]
    )
    views = []
    for image, (top, left, flip) in zip(images().numpy(), given, strict=True):
        picture = functional.crop(functional.pad(Image.fromarray(image), PAD), top, left, 32, 32)
        if flip:
            picture = functional.hflip(picture)
        array = np.asarray(picture)
        turned = [loader.rotate_img(array, degrees) for degrees in (0, 90, 180, 270)]
        views += [normalise(view.copy()) for view in turned]
    return torch.stack(views)


def levels(views: torch.Tensor) -> torch.Tensor:
    """The stored levels that normalised views show, uint8."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((views.double() * std + mean) * 255).round().to(torch.uint8)


def train(
    network: torch.nn.Module, views: torch.Tensor, targets: torch.Tensor, settings: dict[str, Any]
) -> list[float]:
    """Losses of the first steps on one batch, as the released training step computes them."""
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings["lr"],
        momentum=settings["momentum"],
        nesterov=settings["nesterov"],
        weight_decay=settings["weight_decay"],
    )
    losses = []
    network.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.CrossEntropyLoss()(network(views), targets)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses


def schedule(settings: dict[str, Any], epochs: int) -> list[float]:
    """Learning rate of every epoch, looked up as in the released code."""
    table = settings["LUT_lr"]
    return [next((lr for last, lr in table if last > epoch), table[-1][1]) for epoch in range(epochs)]


def record(code: ReleasedCode) -> dict[str, Any]:
    """All figures."""
    from rotnet_fast.philox import crop_and_flip_draws

    given = draws(crop_and_flip_draws)
    views = released_views(code, given)
    turns = torch.arange(4).repeat(IMAGES)
    network_code = code.module("architectures/NetworkInNetwork.py")
    head_code = code.module("architectures/NonLinearClassifier.py")
    pretext = code.config("CIFAR10_RotNet_NIN4blocks")["networks"]["model"]

    networks = {}
    for blocks in (3, 4, 5):
        torch.manual_seed(SEED)
        network = network_code.create_model({**pretext["opt"], "num_stages": blocks}).eval()
        weights = sha256(*network.parameters())
        names = network.all_feat_names[:-1]
        with torch.no_grad():
            maps = dict(zip(names, network(views, names), strict=True))
            logits = network(views)
        losses = train(network, views, turns, pretext["optim_params"])
        with torch.no_grad():
            after = network.eval()(views)
        networks[str(blocks)] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "initial_weights": weights,
            "maps": {name: summary(values) for name, values in maps.items()},
            "logits": summary(logits),
            "losses": losses,
            "logits_after": summary(after),
        }

    heads = {}
    maps = torch.randn(16, 192, 8, 8, generator=torch.Generator().manual_seed(1))
    for kind, name in (
        ("nonlinear", "CIFAR10_MultLayerClassifier_on_RotNet_NIN4blocks_Conv2_feats"),
        ("conv", "CIFAR10_ConvClassifier_on_RotNet_NIN4blocks_Conv2_feats"),
    ):
        settings = code.config(name)["networks"]["classifier"]
        torch.manual_seed(SEED)
        head = head_code.create_model(settings["opt"])
        weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        deviations = [weight.std().item() for weight in weights]
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in weights:  # so that the logits compare the heads, not their draws
                weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
        losses = train(head, maps, torch.arange(16) % 10, settings["optim_params"])
        heads[kind] = {
            "shapes": [list(weight.shape) for weight in weights],
            "deviations": deviations,
            "losses": losses,
        }

    configurations = {}
    for name in code.configurations():
        config = code.config(name)
        (trained,) = (
            its["optim_params"] for its in config["networks"].values() if its["optim_params"] is not None
        )
        data = config["data_train_opt"]
        configurations[name] = {
            "epochs": config["max_num_epochs"],
            "batch_size": data["batch_size"],
            "epoch_size": data["epoch_size"],
            "labels_per_class": data.get("num_imgs_per_cat"),
            "momentum": trained["momentum"],
            "nesterov": trained["nesterov"],
            "weight_decay": trained["weight_decay"],
            "lr": runs(schedule(trained, config["max_num_epochs"])),
        }

    return {
        "revision": revision(code.folder),
        "torch": torch.__version__,
        "draws": [[top, left, int(flip)] for top, left, flip in given],
        "views": {"levels": sha256(levels(views)), **summary(views)},
        "networks": networks,
        "heads": heads,
        "configurations": configurations,
    }


def runs(rates: list[float]) -> list[list[float]]:
    """Lengths and values of the stretches of equal rates."""
    found: list[list[float]] = []
    for rate in rates:
        if not found or found[-1][1] != rate:
            found.append([0, rate])
        found[-1][0] += 1
    return found


def revision(folder: Path) -> str:
    """The commit that is checked out."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Record what the released code does.")
    parser.add_argument("checkout", type=Path, help="folder of gidariss/FeatureLearningRotNet")
    code = ReleasedCode(parser.parse_args().checkout)
    found = record(code)
    if found["revision"] != REVISION:
        print(f"the checkout is at {found['revision']}; check out {REVISION}", file=sys.stderr)
        return 1
    text = json.dumps(found, indent=1)
    OUTPUT.write_text(re.sub(r"\s+(?=[^\[\]{}\"]*\])", " ", text) + "\n")  # lists of numbers on one line each
    print(f"wrote {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
