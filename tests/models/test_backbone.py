"""Features for downstream use: what a backbone computes, what it takes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import read_digits_once, tiny_config
from torch import nn

import rotnet_fast
from rotnet_fast import pretrained
from rotnet_fast.backbone import Backbone, load_backbone
from rotnet_fast.engine import checkpoint
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.models.nin import NetworkInNetwork
from rotnet_fast.ops.reference import normalisation_coefficients
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.pretrain import pretrain

ROTATIONS = (0, 90, 180, 270)


def trained_network(in_channels: int = 3) -> NetworkInNetwork:
    """A network whose BatchNorm statistics are not those of a new one."""
    torch.manual_seed(0)
    network = NetworkInNetwork(4, blocks=4, width=0.1, in_channels=in_channels)
    for _ in range(3):
        network(torch.randn(8, in_channels, 16, 16))
    return network.eval()


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(trained_network(), rotations=ROTATIONS, image_size=16)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """As the README defines it, with one rounding: float32 [N,C,H,W], channels_last."""
    scale, shift = normalisation_coefficients(CIFAR10_MEAN, CIFAR10_STD)
    return (images.double() * scale + shift).float().permute(0, 3, 1, 2)


def test_features_are_those_of_the_network_on_normalised_images(
    backbone: Backbone, images: torch.Tensor
) -> None:
    expected = backbone.network.features(normalised(images), backbone.layers)
    assert backbone.layers == ("conv1", "conv2", "conv3", "conv4")
    for layer in backbone.layers:
        found = backbone.features(images, layer=layer)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected[layer])
        assert torch.equal(backbone.features(normalised(images), layer), expected[layer])
        assert torch.equal(backbone(images, layer), expected[layer].mean(dim=(2, 3)))
    assert torch.equal(backbone.features(images), expected["conv2"])


def test_normalisation_is_the_textbook_one(backbone: Backbone, images: torch.Tensor) -> None:
    mean, std = torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)
    textbook = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(backbone.features(images), backbone.features(textbook), rtol=1e-4, atol=1e-6)


def test_several_layers_come_from_one_pass_as_a_dictionary(backbone: Backbone, images: torch.Tensor) -> None:
    passes = []
    backbone.network.get_submodule("conv1").register_forward_hook(lambda *_: passes.append(1))
    found = backbone.features(images, layer=["conv3", "conv1"])
    assert list(found) == ["conv3", "conv1"]
    assert len(passes) == 1
    for layer, maps in found.items():
        assert torch.equal(maps, backbone.features(images, layer))


def test_batches_are_an_internal_matter(backbone: Backbone, images: torch.Tensor) -> None:
    whole = backbone.features(images, ["conv1", "conv2"])
    sizes = []
    backbone.network.get_submodule("conv1").register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    in_parts = backbone.features(images, ["conv1", "conv2"], batch_size=2)
    assert sizes == [2, 2, 1]
    for layer in whole:
        torch.testing.assert_close(in_parts[layer], whole[layer], rtol=1e-5, atol=1e-6)
        assert in_parts[layer].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone(images, batch_size=2), backbone(images), rtol=1e-5, atol=1e-6)


def test_rotation_logits_are_those_of_the_turned_images(backbone: Backbone, images: torch.Tensor) -> None:
    logits = backbone.rotation_logits(images, batch_size=2)
    assert logits.shape == (5, 4, 4)
    for k in range(4):
        turned = torch.rot90(normalised(images), k, (2, 3))
        torch.testing.assert_close(logits[:, k], backbone.network(turned), rtol=1e-4, atol=1e-5)


def test_threads_get_what_belongs_to_their_own_images(backbone: Backbone) -> None:
    given = [torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8) for _ in range(4)]
    expected = [backbone.vectors_and_rotations(images) for images in given]
    started = threading.Barrier(len(given))

    def work(number: int) -> bool:
        started.wait()
        found = [backbone.vectors_and_rotations(given[number]) for _ in range(20)]
        return all(torch.equal(a, b) for pair in found for a, b in zip(pair, expected[number], strict=True))

    with ThreadPoolExecutor(len(given)) as pool:
        assert all(pool.map(work, range(len(given))))


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (1, 1, 1, 3), (2, 20, 9, 3)])
def test_any_number_and_size_of_images_will_do(backbone: Backbone, shape: tuple[int, ...]) -> None:
    found = backbone.features(torch.zeros(shape, dtype=torch.uint8))
    assert found.shape == (shape[0], 16, (shape[1] + 3) // 4, (shape[2] + 3) // 4)


def test_views_of_a_larger_tensor_are_taken(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8).permute(0, 2, 3, 1)[::2]
    assert torch.equal(
        backbone.features(images), backbone.features(images.clone(memory_format=torch.contiguous_format))
    )


def test_a_backbone_stays_frozen_and_in_eval_mode_inside_another_module(
    backbone: Backbone, images: torch.Tensor
) -> None:
    before = checkpoint.state_hash(backbone.network.state_dict())
    larger = nn.Sequential(backbone, nn.Linear(16, 2)).train()
    larger(images).sum().backward()
    assert not any(part.training for part in backbone.modules())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert checkpoint.state_hash(backbone.network.state_dict()) == before


def test_the_network_can_be_fine_tuned_and_images_can_have_gradients(
    backbone: Backbone, images: torch.Tensor
) -> None:
    x = normalised(images).requires_grad_()
    backbone(x).sum().backward()
    assert x.grad is not None
    network = backbone.network.requires_grad_(True).train()
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floating_images_of_another_type_are_converted(
    backbone: Backbone, images: torch.Tensor, dtype: torch.dtype
) -> None:
    x = normalised(images).to(dtype)
    assert torch.equal(backbone.features(x), backbone.features(x.float()))


def test_a_backbone_may_compute_in_half_precision(backbone: Backbone, images: torch.Tensor) -> None:
    whole = backbone.features(images)
    halved = backbone.to(torch.bfloat16).features(images)
    assert halved.dtype == torch.float32
    assert (halved - whole).norm() < 0.05 * whole.norm()


def test_grey_images_need_a_grey_network() -> None:
    grey = Backbone(trained_network(1), rotations=ROTATIONS, mean=[0.5], std=[0.25])
    assert grey.features(torch.zeros(2, 16, 16, 1, dtype=torch.uint8)).shape[0] == 2
    with pytest.raises(ArgumentError, match="mean has 3 values; this network needs 1"):
        Backbone(trained_network(1), rotations=ROTATIONS)
    with pytest.raises(ArgumentError, match="rotations has 2 values; this network needs 4"):
        Backbone(trained_network(), rotations=(0, 180))


@pytest.mark.parametrize(
    ("images", "error", "sentence"),
    [
        ([[0]], TypeError, "images must be a tensor, got list: use torch.from_numpy"),
        (torch.zeros(2, 16, 16, 3, dtype=torch.int64), TypeError, "got torch.int64"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), ArgumentError, r"must be \[N,H,W,C\].*images\[None\]"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ArgumentError, r"has 16: move.*permute\(0, 2, 3, 1\)"),
        (torch.zeros(2, 16, 16, 1, dtype=torch.uint8), ArgumentError, r"has 1: repeat.*\(-1, -1, -1, 3\)"),
        (torch.zeros(2, 16, 16, 3), ArgumentError, r"floating.*\[N,C,H,W\].*move.*\(0, 3, 1, 2\)"),
        (torch.zeros(2, 3, 16), ArgumentError, r"got shape \[2, 3, 16\]"),
        (torch.zeros(2, 3, 0, 16), ArgumentError, "at least one row and column"),
    ],
)  # fmt: skip
def test_wrong_images_are_named(
    backbone: Backbone, images: Any, error: type[Exception], sentence: str
) -> None:
    for call in (backbone, backbone.features, backbone.rotation_logits):
        with pytest.raises(error, match=sentence):
            call(images)


def test_wrong_arguments_are_named(backbone: Backbone, images: torch.Tensor) -> None:
    for layer in ("conv5", ["conv1", "fc"]):
        with pytest.raises(ArgumentError, match=r"choose from conv1, conv2, conv3, conv4"):
            backbone.features(images, layer)
    with pytest.raises(ArgumentError, match="layers is empty"):
        backbone.features(images, [])
    with pytest.raises(ArgumentError, match="batch_size is 0; it must be at least 1"):
        backbone.features(images, batch_size=0)
    with pytest.raises(TypeError, match="images must be uint8"):
        backbone.rotation_logits(normalised(images))
    with pytest.raises(ValueError, match="not square"):
        backbone.rotation_logits(torch.zeros(1, 8, 9, 3, dtype=torch.uint8))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny pretraining with an export in it, not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain(tiny_config(folder))
    export(ExportConfig(folder))
    return folder


def test_every_form_of_the_weights_gives_the_same_bits(
    run: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    snapshot = tmp_path / "epoch-0002.pt"
    checkpoint.save(snapshot, {name: state[name] for name in ("config", "epoch", "module", "metrics")})
    places = (run, run / "export", run / "export/model.safetensors", run / "checkpoints/last.pt", snapshot)
    for place in places:
        for given in (place, str(place)):
            loaded = rotnet_fast.load_backbone(given, device="cpu")
            assert checkpoint.state_hash(loaded.network.state_dict()) == checkpoint.state_hash(
                state["module"]
            )
            assert loaded.metadata["state_hash"] == checkpoint.state_hash(state["module"])
            assert (loaded.rotations, loaded.layers) == (ROTATIONS, ("conv1", "conv2", "conv3"))
            assert (loaded.mean, loaded.std, loaded.image_size) == (CIFAR10_MEAN, CIFAR10_STD, 16)
            assert loaded.metadata["dataset"].startswith(("digits", "handwritten digits"))
    network = NetworkInNetwork(4, blocks=3, width=0.05)
    network.load_state_dict(state["module"])
    assert torch.equal(
        loaded.features(images), network.eval().features(normalised(images), ["conv2"])["conv2"]
    )


def test_older_weights_serve_where_the_newest_are_damaged(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "checkpoints/last.pt").write_bytes(b"")
    assert load_backbone(copy, "cpu").metadata["epochs"] == "2"
    assert "using an older one" in caplog.text


def test_a_shipped_model_is_loaded_by_its_name_and_checked_before_it_is_parsed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (run / "export/model.safetensors").read_bytes()
    (tmp_path / "tiny.safetensors").write_bytes(content)
    monkeypatch.setattr(pretrained, "_WEIGHTS", tmp_path)
    monkeypatch.setitem(pretrained.SHIPPED, "tiny", hashlib.sha256(content).hexdigest())
    assert load_backbone("tiny", "cpu").image_size == 16
    with pytest.raises(CheckpointError, match=r"ships with the package: .*tiny"):
        load_backbone("huge")
    (tmp_path / "tiny.safetensors").write_bytes(content + b" ")
    monkeypatch.setattr(checkpoint, "unpack_weights", lambda *_: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is not that of the pretrained model"):
        load_backbone("tiny")
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load_backbone("tiny")


def test_every_shipped_model_is_whole() -> None:
    for name in pretrained.SHIPPED:
        assert load_backbone(name, "cpu").layers


def test_what_is_no_backbone_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist; pass a run folder"):
        load_backbone("nowhere")
    with pytest.raises(CheckpointError, match=r"contains neither model.safetensors nor checkpoints/"):
        load_backbone(tmp_path)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, other, {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds weights of another program"):
        load_backbone(other)
    other.write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated, damaged or not a checkpoint of rotnet_fast"):
        load_backbone(other)
    with pytest.raises(CheckpointError, match=r"config.json is truncated, damaged or not a checkpoint of"):
        load_backbone(run / "config.json")
    heads = tmp_path / "heads.pt"
    checkpoint.save(heads, {"config": {"task": "evaluate frozen"}, "module": {}, "epoch": 1})
    with pytest.raises(CheckpointError, match="was not written by pretraining"):
        load_backbone(heads)
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ArgumentError, match=f"device is {device}"):
            load_backbone(run, device)


def test_weights_that_do_not_fit_their_description_are_refused(run: Path, tmp_path: Path) -> None:
    tensors, metadata = checkpoint.unpack_weights((run / "export/model.safetensors").read_bytes(), run)
    path = tmp_path / "model.safetensors"
    config = json.loads(metadata["config"])
    wrong = [{"config": json.dumps({**config, **change})} for change in (
        {"blocks": 4}, {"width": 1.0}, {"rotations": "x"}, {"rotations": [0, 180]}, {"model": "nin2"},
    )]  # fmt: skip
    without = {name: value for name, value in config.items() if name != "blocks"}
    wrong += [{"mean": "[0.5]"}, {"layers": "[]"}, {"config": json.dumps(without)}, {"config": "["}]
    for changes in wrong:
        path.write_bytes(checkpoint.pack_weights(tensors, {**metadata, **changes}))
        with pytest.raises(CheckpointError, match="does not describe a network that this version"):
            load_backbone(path)
    path.write_bytes(checkpoint.pack_weights(tensors, {"architecture": "NetworkInNetwork"}))
    with pytest.raises(CheckpointError, match="does not describe"):
        load_backbone(path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_images_may_lie_on_another_device(run: Path, images: torch.Tensor) -> None:
    on_gpu, on_cpu = load_backbone(run), load_backbone(run, "cpu")
    found = on_gpu.features(images)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), on_cpu.features(images), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(on_cpu.features(images.cuda()), on_cpu.features(images))


def test_a_thawed_network_follows_train_and_eval(backbone: Backbone, images: torch.Tensor) -> None:
    backbone.network.requires_grad_(True)
    larger = nn.Sequential(backbone, nn.Linear(16, 2)).train()
    assert all(part.training for part in backbone.network.modules())
    larger(normalised(images)).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.network.feature_parameters("conv2"))
    larger.eval()
    assert not any(part.training for part in backbone.modules())
    backbone.network.requires_grad_(False)
    larger.train()
    assert not any(part.training for part in backbone.network.modules())


def test_a_replaced_last_layer_no_longer_tells_rotations_apart(
    backbone: Backbone, images: torch.Tensor
) -> None:
    before = backbone(images)
    backbone.network.classifier = nn.Linear(16, 10)  # type: ignore[assignment]
    assert torch.equal(backbone(images), before)  # features are what they were
    with pytest.raises(
        ArgumentError, match=r"network returns \[10\] numbers per view, and there are 4 rotations"
    ):
        backbone.rotation_logits(images)


def test_a_saved_backbone_is_the_same_when_it_is_loaded(
    run: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    backbone = load_backbone(run, device="cpu")
    assert backbone.save(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "model.safetensors"
    again = load_backbone(tmp_path / "new" / "folder", device="cpu")
    assert torch.equal(again(images), backbone(images))
    assert again.metadata == backbone.metadata
    exported = export(ExportConfig(str(run), output=tmp_path / "exported"))
    (ours,) = (pretrained.read_pretrained(tmp_path / "new" / "folder"),)
    theirs = pretrained.read_pretrained(exported)
    assert ours.metadata("x") == theirs.metadata("x")
    assert torch.equal(
        load_backbone(again.save(tmp_path / "third").parent, device="cpu")(images), backbone(images)
    )


def test_a_fine_tuned_backbone_keeps_its_weights_and_no_metrics(
    run: Path, images: torch.Tensor, tmp_path: Path
) -> None:
    backbone = load_backbone(run, device="cpu")
    before = backbone(images)
    sgd = torch.optim.SGD(backbone.network.requires_grad_(True).parameters(), lr=0.1)
    backbone.train()
    backbone.network(normalised(images)).square().mean().backward()
    sgd.step()
    backbone.eval()
    found = load_backbone(backbone.save(tmp_path / "tuned"), device="cpu")
    assert torch.equal(found(images), backbone(images).detach())
    assert not torch.equal(found(images), before)
    read = pretrained.read_pretrained(tmp_path / "tuned")
    assert (read.metrics, read.epoch) == ({}, pretrained.read_pretrained(run).epoch)
    halved = backbone.to(torch.bfloat16)
    again = load_backbone(halved.save(tmp_path / "halved"), device="cpu")
    assert torch.equal(again.to(torch.bfloat16)(images), halved(images).detach())


def test_a_backbone_is_not_saved_beside_the_card_of_others_nor_among_checkpoints(
    run: Path, tmp_path: Path
) -> None:
    folder = export(ExportConfig(str(run), output=tmp_path / "exported"))
    backbone = load_backbone(run, device="cpu")
    backbone.save(folder)  # the very weights
    next(backbone.network.parameters()).data += 1
    with pytest.raises(ArgumentError, match=r"exported, whose README\.md describes other weights"):
        backbone.save(folder)
    (folder / "README.md").write_text("My own notes.\n")
    backbone.save(folder)
    with pytest.raises(ArgumentError, match="checkpoints, the checkpoints of a run; choose another folder"):
        backbone.save(run / "checkpoints")


def test_what_could_not_be_built_again_is_not_saved(backbone: Backbone, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"not loaded by load_backbone.* save network\.state_dict"):
        backbone.save(tmp_path / "made")
    loaded = load_backbone(run, device="cpu")
    loaded.network.classifier = nn.Linear(loaded.network.feature_channels(loaded.layers[-1]), 10)  # type: ignore[assignment]
    with pytest.raises(
        ArgumentError, match=r"has other layers than the nin that was loaded.*network\.state_dict"
    ):
        loaded.save(tmp_path / "changed")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArgumentError, match="folder is empty"):
        load_backbone(run, device="cpu").save("")
