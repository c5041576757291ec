"""`rotnet_fast.train_rotnet`: pretraining from Python, on own images, with own networks."""

from __future__ import annotations

import json
import math
import shutil
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import pixels, save
from PIL import Image
from processes import before_step
from tiny import read_digits_once
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import rotnet_fast
from rotnet_fast import load_backbone, train_rotnet
from rotnet_fast.data.own import own_images
from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import ArgumentError, CheckpointError, DataError
from rotnet_fast.evaluate import EvaluateConfig, evaluate
from rotnet_fast.export import main as export
from rotnet_fast.models.build import make_network
from rotnet_fast.presets import quickstart
from rotnet_fast.pretrain import main, pretrain

SMALL: dict[str, Any] = {
    "preset": "quickstart",
    "epochs": 2,
    "batch_size": 16,
    "device": "cpu",
    "precision": "fp32",
    "tensorboard": False,
    "checkpoint_every_steps": 1,
}
NIN: dict[str, Any] = {**SMALL, "blocks": 3, "width": 0.05}
IMAGES = np.stack([pixels(seed, 16, 16) for seed in range(41)])  # [41,16,16,3]


@pytest.fixture(autouse=True, scope="module")
def _digits() -> Iterator[None]:
    with read_digits_once():
        yield


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run / "checkpoints" / "last.pt")["module"]
    return found


def losses(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line.get(name) for name in ("kind", "epoch", "step", "loss")} for line in lines]


def assert_same(run: Path, other: Path) -> None:
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert losses(run) == losses(other)


class Pictures(Dataset[Any]):
    """A map-style data set, as torchvision has them."""

    def __init__(self, items: list[Any], labels: list[int] | None = None) -> None:
        self.items, self.labels = items, labels
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        self.read.append(number)
        item = self.items[number]
        return item if self.labels is None else (item, self.labels[number])


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command on a folder of PNG files."""
    home = tmp_path_factory.mktemp("folder")
    for number, image in enumerate(IMAGES):
        save(home / "images" / f"{number:02}.png", image)
    small = {name: value for name, value in NIN.items() if name not in ("preset", "tensorboard")}
    flags = [word for name, value in small.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    data = ["--preset", "quickstart", "--dataset", "folder", "--data-dir", str(home / "images")]
    assert main([*data, "--no-tensorboard", *flags, "--output", str(home / "run")]) == 0
    return home


FORMS: dict[str, Any] = {
    "array NHWC": IMAGES,
    "array NCHW": IMAGES.transpose(0, 3, 1, 2).copy(),
    "tensor NHWC": torch.from_numpy(IMAGES),
    "tensor NCHW": torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
    "pictures": Pictures([Image.fromarray(image) for image in IMAGES]),
    "tensors": Pictures([torch.from_numpy(image).permute(2, 0, 1) for image in IMAGES]),
    "arrays": Pictures(list(IMAGES)),
    "torch's own": TensorDataset(torch.from_numpy(IMAGES)),
    "a list": [Image.fromarray(image) for image in IMAGES],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_give_the_same_weights_in_every_form(
    form: str, of_folder: Path, tmp_path: Path
) -> None:
    trained = train_rotnet(FORMS[form], output=tmp_path / "run", **NIN)
    assert trained.folder == tmp_path / "run"
    assert_same(trained.folder, of_folder / "run")
    command = json.loads((of_folder / "run" / "results.json").read_text())
    for name in ("rotation_accuracy", "rotation_loss", "train", "data_fingerprint", "state_hash", "loader"):
        assert trained.metrics[name] == command[name], name
    assert (trained.metrics["train_images"], trained.metrics["dataset"]) == (38, "own images")


def test_a_folder_and_a_name_are_those_of_the_command(of_folder: Path, tmp_path: Path) -> None:
    train_rotnet(of_folder / "images", output=tmp_path / "run", image_size=16, **NIN)
    assert_same(tmp_path / "run", of_folder / "run")
    small = {**NIN, "limit_train": 40, "limit_test": 20}
    pretrain(replace(quickstart(), output=tmp_path / "command", **small))
    trained = train_rotnet("digits", "nin", output=str(tmp_path / "digits"), **small)
    assert_same(trained.folder, tmp_path / "command")


def test_images_of_any_size_are_resized_as_those_of_a_folder(tmp_path: Path) -> None:
    pictures = [pixels(seed, 12 + seed % 5, 10 + seed % 7) for seed in range(21)]
    for number, image in enumerate(pictures):
        save(tmp_path / "images" / f"{number:02}.png", image)
    train_rotnet(tmp_path / "images", output=tmp_path / "folder", **{**NIN, "epochs": 1}, image_size=20)
    own = [Image.fromarray(image) for image in pictures]
    train_rotnet(own, output=tmp_path / "own", **{**NIN, "epochs": 1}, image_size=20)
    assert_same(tmp_path / "own", tmp_path / "folder")


def test_each_image_is_read_once_and_test_images_may_be_given(tmp_path: Path) -> None:
    train, test = Pictures(list(IMAGES[:30])), Pictures(list(IMAGES[30:]))
    trained = train_rotnet(train, test=test, output=tmp_path / "run", **NIN)
    assert (trained.metrics["train_images"], trained.metrics["test_images"]) == (30, 11)
    assert train.read == [0, *range(30)]  # the first also tells the size
    assert test.read == [0, *range(11)]


def test_labels_serve_the_monitor_and_change_nothing_else(tmp_path: Path) -> None:
    labels = [number % 2 for number in range(41)]
    plain = train_rotnet(IMAGES, output=tmp_path / "plain", **NIN)
    watched = train_rotnet(
        Pictures(list(IMAGES), labels), output=tmp_path / "watched", monitor=("knn",), **NIN
    )
    assert (plain.metrics["classes"], watched.metrics["classes"]) == (0, 2)
    assert watched.metrics["features"].keys() == {"knn_accuracy"}
    found, expected = weights(watched.folder), weights(plain.folder)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match="monitor is knn, which compares features by labels"):
        train_rotnet(IMAGES, output=tmp_path / "none", monitor=("knn",), **NIN)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("labels", "names", "classes", "numbers"),
    [
        ([0, 1, 2], None, ("0", "1", "2"), [0, 1, 2]),
        ([10**12, 7, 7], None, ("7", "1000000000000"), [1, 0, 0]),
        ([0, 1, 1], ["cat", "dog", "frog"], ("cat", "dog", "frog"), [0, 1, 1]),
        ([0, 1, 5], ["cat", "dog"], ("0", "1", "5"), [0, 1, 2]),
        ([0, 1, -1], None, (), [0, 0, 0]),
        (["cat", "dog", "cat"], None, (), [0, 0, 0]),
    ],
)
def test_labels_are_classes_if_every_image_has_one(
    labels: list[Any], names: list[str] | None, classes: tuple[str, ...], numbers: list[int]
) -> None:
    given = Pictures(list(IMAGES[:21]), 7 * labels)
    if names is not None:
        given.classes = names  # type: ignore[attr-defined]
    dataset = own_images(given).read(None, None, None, None, False)
    assert dataset.classes == classes
    assert dataset.train.labels.tolist() == (7 * numbers)[1:20]
    assert dataset.test.labels.tolist() == [numbers[0], numbers[20 % 3]]


def test_nothing_is_printed_unless_it_is_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_rotnet(IMAGES, output=tmp_path / "quiet", **NIN)
    assert capfd.readouterr() == ("", "")
    train_rotnet(IMAGES, output=tmp_path / "loud", progress=True, **NIN)
    said = capfd.readouterr().out
    assert "data: own images: 38 training images without labels, 3 test images" in said
    assert "epoch 2/2" in said


def test_a_run_is_resumed_to_the_same_bits_by_both_names(
    of_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    for resume in (tmp_path / "run", "auto"):
        with monkeypatch.context() as patch:
            before_step(patch, 4, stop)
            with pytest.raises(KeyboardInterrupt):
                train_rotnet(IMAGES, output=tmp_path / "run", resume="auto", **NIN)
        again = {**NIN, "output": tmp_path / "run"} if resume == "auto" else {}
        trained = train_rotnet(IMAGES, resume=resume, **again)
        assert_same(trained.folder, of_folder / "run")
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            path.unlink()
    with pytest.raises(CheckpointError, match=r"is of a run on other images: data_fingerprint differs"):
        train_rotnet(IMAGES[::-1], resume=of_folder / "run")


def test_the_command_resumes_a_run_on_the_images_of_a_program(of_folder: Path, tmp_path: Path) -> None:
    train_rotnet(IMAGES, output=tmp_path / "run", **NIN)
    resume = ["--resume", str(tmp_path / "run"), "--epochs", "2"]
    shutil.copytree(of_folder / "run", tmp_path / "copy")
    train_rotnet(IMAGES, resume=tmp_path / "copy")  # and the other way round
    assert_same(tmp_path / "copy", of_folder / "run")
    assert main(resume) == 2  # which asks for the folder
    assert main([*resume, "--data-dir", str(of_folder / "images")]) == 0
    assert_same(tmp_path / "run", of_folder / "run")


class Own(nn.Module):
    """A network that only takes images of 16x16 pixels."""

    def __init__(self, outputs: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Linear(8 * 4 * 4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.stage(self.stem(x)).flatten(1))
        return logits


class Encoder(Own):
    """A network that returns maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.stage(self.stem(x))
        return maps


class Flat(Encoder):
    """A network whose features depend on the size of the images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(1)


class WithState(Own):
    """A network that saves something other than tensors."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Nothing depends on it."""


class Masked(Encoder):
    """A network with constants: one with infinities, and one whose elements share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("scale", torch.ones(1).expand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = self.scale  # type: ignore[assignment]
        return super().forward(x) * scale.view(1, 8, 1, 1)


def called() -> nn.Module:
    """A module that cannot be copied any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated
        convolution = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    module = nn.Sequential(convolution, nn.ReLU())
    module(torch.zeros(1, 3, 8, 8))
    return module


def made(network: type[nn.Module], *arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(*arguments)


def test_a_module_of_torchvision_equals_its_name(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = resnet18(num_classes=4)
    short = {**SMALL, "epochs": 1, "seed": 3}
    by_module = train_rotnet(IMAGES[:20], module, output=tmp_path / "module", **short)
    by_name = train_rotnet(IMAGES[:20], "resnet18", output=tmp_path / "name", **short)
    assert_same(by_module.folder, by_name.folder)
    assert by_module.backbone.layers == by_name.backbone.layers
    images = torch.from_numpy(IMAGES)
    assert torch.equal(by_module.backbone(images), by_name.backbone(images))


@pytest.mark.parametrize(
    ("network", "head"),
    [((Own,), False), ((Own, 10), True), ((Encoder,), True)],
    ids=["logits", "features", "maps"],
)
def test_a_network_of_ones_own_is_trained_saved_and_loaded(
    network: tuple[Any, ...], head: bool, tmp_path: Path
) -> None:
    module = made(*network)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trained = train_rotnet(IMAGES, module, output=tmp_path / "run", **SMALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    backbone = trained.backbone
    assert backbone.layers == ("stem", "stage")
    assert ("rotation_head.weight" in weights(trained.folder)) == head
    assert not torch.equal(weights(trained.folder)["stem.0.weight"], before["stem.0.weight"])
    images = torch.from_numpy(IMAGES)
    assert backbone.features(images, "stem").shape == (41, 8, 8, 8)
    assert backbone.rotation_logits(images).shape == (41, 4, 4)
    with torch.random.fork_rng(devices=[]):
        other = network[0](*network[1:])  # with other weights
    backbone.save(tmp_path / "saved")
    for place in (trained.folder, tmp_path / "saved"):
        found = load_backbone(place, "cpu", other)
        assert torch.equal(found(images), backbone(images))
        assert torch.equal(found.rotation_logits(images), backbone.rotation_logits(images))
        with pytest.raises(
            CheckpointError, match=f"model own/{network[0].__name__} is a module that a program"
        ):
            load_backbone(place, "cpu")


def test_constants_of_a_network_may_hold_infinities_and_share_memory(tmp_path: Path) -> None:
    trained = train_rotnet(IMAGES, made(Masked), output=tmp_path / "run", **SMALL)
    found = weights(trained.folder)
    assert torch.equal(found["mask"], torch.full((4, 4), -math.inf).triu(1))
    assert torch.equal(found["scale"], torch.ones(8))
    train_rotnet(IMAGES, made(Masked), resume=trained.folder)


def test_a_network_of_this_package_can_be_given_as_a_module(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make_network(4, blocks=3, width=0.05)
    given = train_rotnet(IMAGES, module, output=tmp_path / "given", **SMALL)
    named = train_rotnet(IMAGES, output=tmp_path / "named", **NIN)
    assert_same(given.folder, named.folder)


def test_a_run_of_ones_own_network_is_resumed_with_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_rotnet(IMAGES, made(Own), output=tmp_path / "whole", monitor=None, **SMALL)

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_step(patch, 4, stop)
        with pytest.raises(KeyboardInterrupt):
            train_rotnet(IMAGES, made(Own), output=tmp_path / "run", **SMALL)
    run = tmp_path / "run"
    with pytest.raises(CheckpointError, match="model own/Own is a module that a program gave"):
        train_rotnet(IMAGES, resume=run)
    with pytest.raises(CheckpointError, match="model is 'own/Own' there and 'own/Encoder' here"):
        train_rotnet(IMAGES, Encoder(), resume=run)
    with pytest.raises(
        CheckpointError,
        match=r"weights of another network than model: classifier\.weight has the shape \[4, 128\] there",
    ):
        train_rotnet(IMAGES, Own(8), resume=run)
    train_rotnet(IMAGES, Own(), resume=run)  # its first weights do not count
    assert_same(run, whole.folder)


class Wrapped(nn.Module):
    """A network in another one, which returns features."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Own(6)
        self.projection = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.projection(self.backbone(x))
        return features


class Listed(nn.Module):
    """A stem, and blocks in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_that_says_how_to_resume(number: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, lambda: signal.raise_signal(number))
        with pytest.raises(
            KeyboardInterrupt, match=r"stopped by SIG\w+; the run is saved: resume it with"
        ) as info:
            train_rotnet(IMAGES, output=run, **NIN)
    assert str(info.value).endswith(f"train_rotnet(..., resume={str(run)!r})")
    assert train_rotnet(IMAGES, resume=run).folder == run


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (Wrapped, ("backbone.stem", "backbone.stage")),
        (Listed, ("stem", "blocks.0", "blocks.1")),
    ],
)
def test_layers_lie_in_wrappers_and_lists_too(
    network: type[nn.Module], layers: tuple[str, ...], tmp_path: Path
) -> None:
    trained = train_rotnet(IMAGES, made(network), output=tmp_path / "run", **{**SMALL, "epochs": 1})
    assert trained.backbone.network.layers == layers
    assert trained.backbone.features(torch.from_numpy(IMAGES[:2]), layers[-1]).dim() == 4


@pytest.mark.parametrize("model", [None, Own, "resnet18"])
def test_a_program_draws_its_own_numbers_after_a_training_as_if_there_had_been_none(
    model: Any, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = made(model) if isinstance(model, type) else model
    train_rotnet(IMAGES, network, output=tmp_path / "run", **{**SMALL, "epochs": 1})
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (nn.DataParallel, "model is a DataParallel; pass the module in it: model.module"),
        (torch.compile, "model is a OptimizedModule; pass the module in it: model._orig_mod"),
        (torch.jit.script, "model is a RecursiveScriptModule; pass the module that it was made from"),
        (
            lambda network: nn.Sequential(nn.LazyConv2d(4, 3), network),
            "own/Sequential has parameters without a shape; call it once on an image",
        ),
    ],
)
def test_what_is_passed_instead_of_a_wrapper_is_said(wrap: Any, said: str) -> None:
    for use in (
        lambda model: train_rotnet(IMAGES, model),
        lambda model: load_backbone("nowhere", model=model),
    ):
        with pytest.raises(ArgumentError, match=said):
            use(wrap(Own()))


def test_a_network_is_loaded_into_a_frozen_module_and_saved_apart_from_its_run(tmp_path: Path) -> None:
    network = made(Own)
    trained = train_rotnet(IMAGES, network, output=tmp_path / "run", **{**SMALL, "epochs": 1})
    again = load_backbone(tmp_path / "run", model=network.requires_grad_(False))
    assert again.metadata["state_hash"] == trained.backbone.metadata["state_hash"]
    with pytest.raises(TypeError, match=r"model is 'resnet18'; it must be a module$"):
        load_backbone(tmp_path / "run", model="resnet18")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"device is a module; pass it as model=\.\.\."):
        load_backbone(tmp_path / "run", network)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="own/Linear"):
        load_backbone(tmp_path / "run", model=nn.Linear(3, 3))
    with pytest.raises(ArgumentError, match="run, a run, whose checkpoint would be loaded instead"):
        trained.backbone.save(tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"x\.safetensors, a file; pass the folder"):
        trained.backbone.save(tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_frozen_parts_of_a_network_stay_as_they_are(tmp_path: Path) -> None:
    module = made(Own)
    assert isinstance(module, Own)
    module.stem.requires_grad_(False)
    trained = train_rotnet(IMAGES, module, output=tmp_path / "run", **SMALL)
    found, before = weights(trained.folder), module.state_dict()
    assert torch.equal(found["stem.0.weight"], before["stem.0.weight"])
    assert not torch.equal(found["stage.0.weight"], before["stage.0.weight"])


def test_features_of_ones_own_network_are_watched_while_it_trains(tmp_path: Path) -> None:
    labelled = Pictures(list(IMAGES), [number % 2 for number in range(41)])
    trained = train_rotnet(labelled, made(Own), output=tmp_path / "run", monitor=("knn",), **SMALL)
    assert 0 <= trained.metrics["features"]["knn_accuracy"]["last"] <= 100


def test_commands_say_that_they_need_the_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_rotnet("digits", made(Own), output=tmp_path / "run", limit_train=20, limit_test=20, **SMALL)
    assert export([str(run.folder), "--output", str(tmp_path / "export")]) == 4
    assert main(["--resume", str(run.folder)]) == 4
    for line in capsys.readouterr().err.splitlines():
        assert "model own/Own is a module that a program gave" in line
    config = EvaluateConfig(str(run.folder), frozen=False, knn=True, device="cpu", output=tmp_path / "knn")
    with pytest.raises(CheckpointError, match="model own/Own is a module that a program gave"):
        evaluate(config, config.output_folder())


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield IMAGES[0]


class WithoutLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) @ self.weight.T


class TwoOutputs(Own):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), x


class Branching(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() >= 0 else -x)


WIDE = Image.new("RGB", (20, 16))
SQUARE = Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("dataset", "changes", "error", "says"),
    [
        (
            torch.rand(8, 3, 16, 16),
            {},
            TypeError,
            r"dataset is Tensor of torch\.float32 .*; pass uint8 images",
        ),
        (
            Pictures([torch.rand(3, 16, 16)] * 2),
            {},
            TypeError,
            r"dataset\[0\] is Tensor of torch\.float32 .*ToTensor",
        ),
        ([SQUARE, torch.rand(3, 8, 8)], {}, TypeError, r"dataset\[1\] is Tensor of torch\.float32"),
        (IMAGES[..., :1], {}, ArgumentError, r"dataset has the shape \[41, 16, 16, 1\], without 3 channels"),
        (IMAGES[0], {}, ArgumentError, r"dataset has the shape \[16, 16, 3\]; add the first dimension"),
        (
            list(IMAGES[..., 0]),
            {},
            ArgumentError,
            r"dataset\[0\] has the shape \[16, 16\]; it must be an image",
        ),
        (
            list(IMAGES[:, :3]),
            {},
            ArgumentError,
            r"dataset\[0\] .*\[3, 16, 3\], which may be NHWC or NCHW; pass",
        ),
        (
            IMAGES,
            {"layout": "NCHW"},
            ArgumentError,
            "layout is NCHW, but dataset has the shape .*; pass NHWC",
        ),
        (IMAGES, {"layout": "HWC"}, ArgumentError, "layout is 'HWC'; it must be NHWC, NCHW"),
        (
            [SQUARE, WIDE],
            {},
            ArgumentError,
            r"dataset\[1\] has 16 x 20 pixels, and dataset\[0\] has 16 x 16; pass image_size",
        ),
        ([WIDE, WIDE], {}, ArgumentError, r"dataset\[0\] has 16 x 20 pixels; pass image_size"),
        (
            [SQUARE, SQUARE],
            {"test": [WIDE]},
            ArgumentError,
            r"16 x 16 pixels, and test\[0\] has 16 x 20 pixels; pass image_size",
        ),
        (Pictures([]), {}, ArgumentError, "dataset is empty; pass images"),
        (IMAGES[:0], {}, ArgumentError, "dataset is empty; pass images"),
        (IMAGES, {"test": []}, ArgumentError, "test is empty; pass images"),
        (IMAGES[:1], {}, ArgumentError, "dataset holds one image; at least two"),
        (Endless(), {}, TypeError, "dataset is Endless, an IterableDataset, whose .*; pass a map-style"),
        (
            DataLoader(Pictures([SQUARE])),
            {},
            TypeError,
            r"dataset is a DataLoader; pass its data set: dataset\.dataset",
        ),
        ({"a": 1}, {}, TypeError, r"dataset is \{'a': 1\}; it must be uint8 images"),
        (3, {}, TypeError, "dataset is 3; it must be uint8 images"),
        ([Image.new("I;16", (16, 16))] * 2, {}, DataError, r"dataset\[0\] is a grey image of 16 bits"),
        ("nowhere", {}, DataError, "dataset is nowhere, which is neither cifar10 nor digits nor a folder"),
        (
            "digits",
            {"test": IMAGES},
            ArgumentError,
            "test only applies to images in memory, and dataset is digits",
        ),
        (IMAGES, {"data_dir": "."}, ArgumentError, "data_dir only applies to dataset cifar10: omit it"),
        (
            IMAGES,
            {"crop": "resized"},
            ArgumentError,
            "crop is resized, which needs image files, but data set ndarray",
        ),
        (IMAGES, {"loader": "dali"}, ArgumentError, "loader is dali, which needs image files"),
        (
            [{"image": Image.new("RGB", (16, 16)), "label": 1}] * 2,
            {},
            TypeError,
            r"dataset\[0\] is a dictionary of 'image', 'label'; pass the images alone, such as",
        ),
        (
            (torch.from_numpy(IMAGES), torch.arange(len(IMAGES))),
            {},
            TypeError,
            "dataset is a tuple of 2 arrays; of images and labels, make a data set",
        ),
        (IMAGES, {"epoch": 3}, TypeError, r"unknown setting epoch \(did you mean epochs\?\)"),
        (IMAGES, {"image_size": "16"}, ArgumentError, "image-size is '16'; it must be an integer"),
        (IMAGES, {"image_size": 0}, ArgumentError, r"image-size is 0; it must lie in \[1, 4096\]"),
        (IMAGES, {"epochs": 0}, ArgumentError, "epochs is 0; it must be at least 1"),
        (IMAGES, {"preset": "fast"}, ArgumentError, "preset is 'fast'; choose from"),
        (IMAGES, {"limit_train": 100}, ArgumentError, r"limit_train is 100; it must lie in \[1, 38\]"),
        (IMAGES, {"resume": "nowhere"}, CheckpointError, "resume is nowhere, which does not exist"),
        (IMAGES, {"model": "resnet81"}, ArgumentError, "unknown model 'resnet81'; did you mean"),
        (IMAGES, {"model": "own/Own"}, CheckpointError, "model own/Own is a module that a program gave"),
        (IMAGES, {"model": Own}, TypeError, "it must be a module, made by calling it"),
        (IMAGES, {"model": 3}, TypeError, "model is 3; it must be a module$"),
        (IMAGES, {"model": nn.Identity()}, ArgumentError, "model own/Identity has no parameters to train"),
        (
            IMAGES,
            {"model": WithoutLayers()},
            ArgumentError,
            r"own/WithoutLayers has no feature maps .*; its layers are",
        ),
        (
            IMAGES,
            {"model": TwoOutputs()},
            ArgumentError,
            r"own/TwoOutputs returns tuple for one image; it must return logits \[1, 4\]",
        ),
        (IMAGES, {"model": Branching()}, ArgumentError, "own/Branching cannot be traced .*; its layers are"),
        (
            IMAGES,
            {"model": make_network(10)},
            ArgumentError,
            "takes images of 3 channels; build it with num_classes=4 and in_channels=3",
        ),
        (
            IMAGES,
            {"model": Own(), "image_size": 20},
            ArgumentError,
            "own/Own does not accept images of 20 x 20 pixels",
        ),
        (
            IMAGES,
            {"model": Flat()},
            ArgumentError,
            "own/Flat returns 128 features for an image of this size and 4608 for another; let it pool",
        ),
        (
            IMAGES,
            {"model": WithState()},
            ArgumentError,
            "own/WithState saves _extra_state, which is no tensor",
        ),
        (
            IMAGES,
            {"model": called()},
            ArgumentError,
            r"own/Sequential cannot be copied \(Only Tensors created",
        ),
        (IMAGES, {"model": Own(), "blocks": 3}, ArgumentError, "blocks is 3; it only applies to --model nin"),
        (
            IMAGES,
            {"model": Own(), "init_from": "run"},
            ArgumentError,
            "init-from is run; it only applies to a model by name",
        ),
    ],
)
def test_a_wrong_use_is_one_sentence_and_leaves_no_file(
    dataset: Any, changes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says) as refused:
        train_rotnet(dataset, output=tmp_path / "run", **{**SMALL, **changes})
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_images_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rotnet_fast.data.own.free_memory", lambda device: 10_000)
    with pytest.raises(ArgumentError, match=r"dataset takes 0\.0 GB in memory as images of 16 pixels, and"):
        train_rotnet(IMAGES, **NIN)


def test_a_model_that_has_a_name_is_loaded_without_a_module() -> None:
    with pytest.raises(
        CheckpointError, match=r"model is own/Own, but .* holds nin, which needs none: omit model"
    ):
        load_backbone("nin4-cifar10-jpeg", "cpu", Own())


def test_the_function_is_imported_on_first_use() -> None:
    assert rotnet_fast.train_rotnet is train_rotnet


def test_each_run_that_learned_nothing_is_told_where_it_was_started(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for seed in (0, 1):
            train_rotnet(
                IMAGES, output=tmp_path / f"run{seed}", seed=seed, **{**NIN, "epochs": 1, "lr": 1e-9}
            )
    assert [warning.filename for warning in told] == [__file__, __file__]
    for seed, warning in enumerate(told):
        assert str(warning.message).endswith(f"(run folder: {tmp_path / f'run{seed}'})")
