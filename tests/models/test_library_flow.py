"""A network of torchvision goes the whole way: pretraining, evaluation, export, use and pictures."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from tiny import read_digits_once, tiny_config
from torch import nn
from torchvision import models

from rotnet_fast import evaluate, visualize
from rotnet_fast.analysis.attention import (
    attention,
    early_middle_late,
    grid_stride,
    on_turning_grid,
    resemblance,
)
from rotnet_fast.analysis.filters import folded_filters
from rotnet_fast.analysis.views import PlainViews
from rotnet_fast.backbone import load_backbone
from rotnet_fast.config import PretrainConfig
from rotnet_fast.engine import checkpoint
from rotnet_fast.engine.precision import resolve_precision
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.export import ExportConfig, export
from rotnet_fast.models.build import make_network
from rotnet_fast.models.library import LibraryNetwork
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.own import OwnNetwork
from rotnet_fast.pretrain import pretrain
from rotnet_fast.pretrained import read_pretrained
from rotnet_fast.protocols import supervised
from rotnet_fast.protocols.result import load_results, render
from rotnet_fast.protocols.supervised import load_supervised

MODEL = "mobilenet_v3_small"  # quick; has dropout, and stages whose names have dots
LAYER = "features.8"


def config_of(output: Path) -> PretrainConfig:
    config = tiny_config(output, image_size=32, limit_train=20, limit_test=10, batch_size=10, log_every=1)
    return config.with_model(MODEL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run folder of a tiny pretraining, evaluated in every way; not to be changed."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    with read_digits_once():
        pretrain(config_of(folder))
        flags = (
            "--fine-tune --supervised --random-init --knn --linear --epochs 1 --batch-size 10 --device cpu"
        )
        assert evaluate.main(["--checkpoint", str(folder), *shlex.split(flags)]) == 0
        yield folder


def test_generators_of_other_devices_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs were seeded"))
    pretrain(replace(config_of(tmp_path / "run"), epochs=1))


def test_several_processes_draw_dropout_alike_after_a_resume(tmp_path: Path) -> None:
    config = config_of(tmp_path / "whole")
    whole, resumed = (
        on_ranks(2, pretrain, one)[0]["state_hash"]
        for one in (
            config,
            replace(
                config,
                output=tmp_path / "resumed",
                resume=str(tmp_path / "whole" / "checkpoints" / "epoch-0001.pt"),
            ),
        )
    )
    assert whole == resumed


def test_a_stopped_run_goes_on_to_the_same_end(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("last.pt", "epoch-0002.pt"):
        (copy / "checkpoints" / name).unlink()
    results = pretrain(replace(config_of(copy), resume="auto"))
    assert results["state_hash"] == json.loads((run / "results.json").read_text())["state_hash"]


def test_a_run_of_one_network_is_no_run_of_another(run: Path) -> None:
    with pytest.raises(CheckpointError, match=f"model is '{MODEL}' there and 'nin' here"):
        pretrain(replace(config_of(run), model="nin", resume="auto"))


def test_a_model_that_there_is_not_is_named_before_data_are_read(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path), model="resnet", dataset="folder", data_dir=tmp_path)
    with pytest.raises(ArgumentError, match=r"did you mean .*resnet18"):
        pretrain(config)


def test_images_that_are_too_small_for_a_network_are_named(tmp_path: Path) -> None:
    config = replace(config_of(tmp_path), model="squeezenet1_1", image_size=4)
    with pytest.raises(ArgumentError, match="squeezenet1_1 does not accept images of 4 x 4 pixels"):
        pretrain(config)


def test_every_protocol_has_its_rows_on_the_stage_before_the_last(run: Path) -> None:
    results = load_results(run / "evaluate-001")
    heads = [(LAYER, "nonlinear"), (LAYER, "conv")]
    assert [(cell["method"], cell["layer"], cell["head"]) for cell in results["cells"]] == [
        *[("frozen", *place) for place in heads],
        *[("random-init", *place) for place in heads * 2],
        *[("fine-tune", *place) for place in heads],
        ("supervised", None, None),
        ("frozen", LAYER, "knn"),
        *[("random-init", LAYER, "knn")] * 2,
        ("frozen", LAYER, "linear"),
        *[("random-init", LAYER, "linear")] * 2,
    ]
    expected = {"model": MODEL, "pretext_task": "rotation", "rotations": [0, 90, 180, 270]}
    assert results["network"] == expected
    assert results["settings"]["layers"] == [LAYER]


def test_published_numbers_of_nin_do_not_stand_beside_another_network(run: Path) -> None:
    results = load_results(run / "evaluate-001")
    for name in ("digits", "cifar10"):
        table = render({**results, "dataset": {**results["dataset"], "name": name}})
        assert f"; {MODEL}; all labels, 1 epoch" in table
        assert table.splitlines()[2].split() == ["method", "layer", "head", "variant", "ours,", "%"]


def test_fine_tuning_trains_what_the_layer_depends_on_and_nothing_else(run: Path) -> None:
    before = read_pretrained(run).state
    state = checkpoint.load_newest(run / "evaluate-001" / f"fine-tune-{LAYER}-conv")[1]["module"]
    for name, value in before.items():
        is_below = name.startswith("features.") and int(name.split(".")[1]) <= 8
        assert torch.equal(state[f"backbone.{name}"], value) is not is_below, name


def test_frozen_network_is_untouched(run: Path) -> None:
    before = read_pretrained(run).state
    state = checkpoint.load_newest(run / "evaluate-001" / "frozen")[1]["module"]
    backbone = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
    assert checkpoint.state_hash(backbone) == checkpoint.state_hash(dict(before))


def test_heads_go_on_any_named_module(run: Path, tmp_path: Path) -> None:
    flags = f"--layers features.1.block.0 avgpool --heads conv --epochs 1 --device cpu --output {tmp_path}/x"
    assert evaluate.main(["--checkpoint", str(run), *shlex.split(flags)]) == 0
    cells = load_results(tmp_path / "x")["cells"]
    assert [(cell["method"], cell["layer"], cell["head"]) for cell in cells] == [
        (method, layer, "conv")
        for method in ("frozen", "random-init")
        for layer in ("features.1.block.0", "avgpool")
    ]


def test_unknown_layers_are_named_before_data_are_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--layers conv2 --dataset folder --data-dir {tmp_path} --device cpu"  # empty
    assert evaluate.main(["--checkpoint", str(run), *shlex.split(flags)]) == 2
    assert f"'conv2', which is no feature map of {MODEL}; choose from features.0, " in capsys.readouterr().err


def test_supervised_training_is_of_the_same_network(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def noted(*arguments: Any, **settings: Any) -> FeatureNetwork:
        made.append(settings)
        return make_network(*arguments, **settings)

    monkeypatch.setattr(supervised, "make_network", noted)
    network = load_supervised(run / "evaluate-001" / "supervised")
    (settings,) = made
    assert settings["image_size"] == read_pretrained(run).config.image_size  # some networks take no other
    assert (network.name, network.num_classes) == (MODEL, 10)
    with pytest.raises(CheckpointError, match="is not one of a supervised training"):
        load_supervised(run / "evaluate-001" / "frozen")


def test_exported_weights_name_their_network_and_fit_the_librarys(run: Path, tmp_path: Path) -> None:
    folder = export(ExportConfig(run, output=tmp_path / "export"))
    tensors, metadata = checkpoint.unpack_weights((folder / "model.safetensors").read_bytes(), folder)
    assert metadata["architecture"] == json.loads(metadata["config"])["model"] == MODEL
    theirs = models.mobilenet_v3_small(num_classes=4).eval().to(memory_format=torch.channels_last)
    theirs.load_state_dict(tensors)
    card = (folder / "README.md").read_text()
    assert f"# RotNet, {MODEL}, handwritten digits" in card
    assert f"{MODEL} of torchvision, with a classifier of 4 rotations; 1,521,956 parameters" in card
    assert f'features(images, layer="{LAYER}")  # [8,48,2,2]' in card
    assert "| features.12 | 576 | 1 x 1 |" in card
    assert f"these weights, frozen | {LAYER} | conv" in card

    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    exported, pretrained = load_backbone(folder, "cpu"), load_backbone(run, "cpu")
    assert exported.layers[-2:] == ("features.11", "features.12")
    maps = exported.features(images)
    assert maps.shape == (3, 48, 2, 2)
    assert torch.equal(maps, exported.features(images, LAYER))
    assert torch.equal(exported(images), maps.mean(dim=(2, 3)))
    assert torch.equal(pretrained.features(images), maps)
    upright = theirs(exported._normalised(images))  # batches of another size may be rounded otherwise
    torch.testing.assert_close(exported.rotation_logits(images)[:, 0], upright, rtol=1e-4, atol=1e-5)
    exported.train()
    assert torch.equal(exported.features(images), maps)


def test_weights_that_do_not_fit_the_named_network_are_refused(run: Path, tmp_path: Path) -> None:
    folder = export(ExportConfig(run, output=tmp_path / "export"))
    path = folder / "model.safetensors"
    tensors, metadata = checkpoint.unpack_weights(path.read_bytes(), folder)
    for model in ("mobilenet_v3_large", "mobilenet", "nin"):
        config = json.dumps({**json.loads(metadata["config"]), "model": model})
        path.write_bytes(checkpoint.pack_weights(tensors, {**metadata, "config": config}))
        with pytest.raises(CheckpointError, match="does not describe a network that this version"):
            load_backbone(folder, "cpu")


def test_pictures_are_drawn_beside_the_supervised_network(run: Path, tmp_path: Path) -> None:
    flags = f"--what filters attention --supervised {run}/evaluate-001/supervised --images 2 --device cpu"
    arguments = ["--checkpoint", str(run), *shlex.split(flags), "--output", str(tmp_path)]
    assert visualize.main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.png",
        "attention.svg",
        "filters.png",
        "filters.svg",
    ]


def test_filters_of_a_network_have_its_batch_norm_folded_in_where_it_has_one() -> None:
    resnet = LibraryNetwork("resnet18", 4)
    bn = resnet.model.bn1
    nn.init.uniform_(bn.running_var, 0.5, 2)
    expected = resnet.model.conv1.weight * (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None, None]
    torch.testing.assert_close(folded_filters(resnet), expected)
    without = LibraryNetwork("squeezenet1_1", 4)
    assert torch.equal(folded_filters(without), without.model.features[0].weight)


def test_attention_of_a_network_that_treats_all_directions_alike_turns_exactly() -> None:
    torch.manual_seed(0)
    network = make_network(4, model="resnet18")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                turned = [torch.rot90(module.weight, k, (2, 3)) for k in range(4)]
                module.weight.copy_(torch.stack(turned).mean(dim=0))
    images = torch.randint(0, 256, (3, 60, 60, 3), dtype=torch.uint8)
    assert on_turning_grid(images, network.stride).shape == (3, 65, 65, 3)
    views = PlainViews((0.5,) * 3, (0.25,) * 3, resolve_precision("fp32", torch.device("cpu")))
    found = attention(network, images, [], views)["equivariance"]
    assert tuple(found) == early_middle_late(network) == ("conv1", "layer3", "layer4")
    for values in found.values():
        assert list(values.values()) == pytest.approx([1.0] * 3, abs=1e-5)


def test_attention_of_a_network_of_one_image_size_is_that_of_the_images_as_they_are() -> None:
    vit = models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=4
    )
    network = OwnNetwork(vit, 4, 3, 64)
    assert grid_stride(network, 64) == 1
    assert grid_stride(make_network(4), 32) == 4
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    views = PlainViews((0.5,) * 3, (0.25,) * 3, resolve_precision("fp32", torch.device("cpu")))
    found = attention(network, images, [0, 2], views)
    assert found["layers"] == list(early_middle_late(network))
    assert resemblance(network, network, images, views)["same_image"] == pytest.approx(
        [1.0] * len(found["layers"])
    )
