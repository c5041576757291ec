"""What others make of the op, a backbone and its network: exported programs, ONNX, traces of torch.fx."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from rotnet_fast import load_backbone, rotate_batch
from rotnet_fast.backbone import Backbone
from rotnet_fast.models.build import make_network

B = Dim("B", max=4096)
IMAGES = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
FLOATS = rotate_batch(IMAGES, rotations=(0,), pad=0, flip_prob=0.0)[0]
FORMS = pytest.mark.parametrize("x", [IMAGES, FLOATS, FLOATS.double()], ids=["uint8", "float32", "float64"])


@pytest.fixture(scope="module", params=["nin", "resnet18"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    if request.param == "nin":
        return load_backbone("nin4-cifar10-jpeg", "cpu")
    torch.manual_seed(0)
    return Backbone(make_network(4, model=request.param), rotations=(0, 90, 180, 270))


class Step(nn.Module):
    """The op, and something behind it."""

    def forward(self, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        views, labels = rotate_batch(images, indices, seed=3)
        return views.mean(dim=(1, 2, 3)) + labels


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_exported_op_takes_any_number_of_images_and_rows(strict: bool) -> None:
    shapes = {"images": {0: Dim("N")}, "indices": {0: B}}
    program = export(Step(), (IMAGES, torch.tensor([0, 1])), dynamic_shapes=shapes, strict=strict).module()
    for images, rows in (
        (IMAGES, [4, 3, 2, 1]),
        (IMAGES[:3], [2, 2, 2]),
        (IMAGES.repeat(99, 1, 1, 1), [494, 0]),
    ):
        assert_same(program(images, torch.tensor(rows)), Step()(images, torch.tensor(rows)))
    with pytest.raises(RuntimeError, match=r"indices\[1\] is 5, outside \[0, 5\)"):
        program(IMAGES, torch.tensor([0, 5]))


@FORMS
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_exported_backbone_takes_any_number_of_images(
    backbone: Backbone, x: torch.Tensor, strict: bool
) -> None:
    program = export(backbone, (x,), dynamic_shapes={"images": {0: B}}, strict=strict)
    assert not any("rotnet_fast" in str(node.target) for node in program.graph.nodes)
    for images in (x[:2], x.repeat(60, 1, 1, 1)):  # fewer than it was made with; more than one batch
        assert_same(program.module()(images), backbone(images))


@pytest.mark.filterwarnings("ignore:No complete tensor")  # torch, of weights in one memory
def test_an_exported_backbone_runs_without_this_package(tmp_path: Path) -> None:
    backbone = load_backbone("nin4-cifar10-jpeg", "cpu")
    torch.export.save(
        export(backbone, (IMAGES,), dynamic_shapes={"images": {0: B}}), tmp_path / "program.pt2"
    )
    torch.save((IMAGES[:3], backbone(IMAGES[:3])), tmp_path / "pair.pt")
    code = (
        "import torch, sys\nx, y = torch.load('pair.pt')\n"
        "torch.testing.assert_close(torch.export.load('program.pt2').module()(x), y, rtol=1e-4, atol=1e-5)\n"
        "assert 'rotnet_fast' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_torch_normalises_to_the_same_bits(backbone: Backbone) -> None:
    assert torch.equal(backbone._in_plain_torch(IMAGES), backbone._views(IMAGES, (0,)))


@FORMS
@pytest.mark.filterwarnings("ignore")  # torch.jit says that it is old
def test_a_backbone_can_be_traced_by_jit(backbone: Backbone, x: torch.Tensor) -> None:
    assert_same(torch.jit.trace(backbone, x)(x[:2]), backbone(x[:2]))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_network_can_be_traced_by_fx(backbone: Backbone, training: bool) -> None:
    network = copy.deepcopy(backbone.network).train(training)
    traced = torch.fx.symbolic_trace(network)
    assert_same(traced(FLOATS), network(FLOATS))
    if training:  # both have moved the statistics that they share, and count the steps
        assert {int(v) for k, v in network.state_dict().items() if "tracked" in k} == {
            int(v) + 2 for k, v in backbone.network.state_dict().items() if "tracked" in k
        }


def test_torchvision_extracts_the_features_of_a_network(backbone: Backbone) -> None:
    extraction = pytest.importorskip(
        "torchvision.models.feature_extraction", reason="torchvision is not installed"
    )
    prefix = "" if backbone.network.name == "nin" else "model."
    # One at a time: in-place layers of a library's network change the map of the layer before.
    for layer in backbone.layers:
        extractor = extraction.create_feature_extractor(backbone.network, [prefix + layer])
        assert_same(extractor(FLOATS)[prefix + layer], backbone.features(FLOATS, layer))


@pytest.mark.parametrize(
    "trace",
    [
        torch.fx.symbolic_trace,
        lambda module: pytest.importorskip(
            "torchvision.models.feature_extraction", reason="torchvision is not installed"
        ).create_feature_extractor(module, ["network.conv2"]),
    ],
    ids=["fx", "torchvision"],
)
def test_fx_is_told_to_trace_the_network_of_a_backbone(
    backbone: Backbone, trace: Callable[[nn.Module], object]
) -> None:
    with pytest.raises(TypeError, match=r"is a Proxy of torch.fx.*trace its network"):
        trace(backbone)


def test_fx_keeps_the_op_as_one_call() -> None:
    traced = torch.fx.symbolic_trace(Step())
    assert [node.target for node in traced.graph.nodes].count(rotate_batch) == 1
    assert torch.equal(traced(IMAGES, torch.tensor([1, 3])), Step()(IMAGES, torch.tensor([1, 3])))


@pytest.mark.filterwarnings("ignore")
def test_jit_keeps_the_op_as_one_call() -> None:
    traced = torch.jit.trace(Step(), (IMAGES, torch.tensor([0, 1, 2])))
    assert [node.kind() for node in traced.graph.nodes()].count("rotnet_fast::rotate_batch_out") == 1
    for rows in ([4, 2], [0, 1, 2, 3, 4, 0]):
        assert_same(traced(IMAGES, torch.tensor(rows)), Step()(IMAGES, torch.tensor(rows)))


def test_an_exported_op_runs_where_the_package_is_imported(tmp_path: Path) -> None:
    rows = torch.tensor([0, 1])
    program = export(Step(), (IMAGES, rows), dynamic_shapes={"images": None, "indices": {0: B}})
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((IMAGES, rows[:1], Step()(IMAGES, rows[:1])), tmp_path / "step.pt")
    code = (
        "import torch, rotnet_fast.ops\nx, rows, y = torch.load('step.pt')\n"
        "program = torch.export.load('program.pt2').module()\n"
        "torch.testing.assert_close(program(x, rows.repeat(2)), y.repeat(2))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_vmap_maps_a_network(backbone: Backbone) -> None:
    mapped = torch.vmap(backbone.network)(FLOATS[:, None])
    assert_same(mapped[:, 0], backbone.network(FLOATS))


def test_vmap_is_told_to_give_the_whole_batch() -> None:
    with pytest.raises(RuntimeError, match=r"not under torch.vmap: pass all indices \[B\] at once"):
        torch.vmap(lambda rows: rotate_batch(IMAGES, rows)[0])(torch.tensor([[0, 1], [1, 2]]))


@FORMS
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["by export", "by trace"])
def test_a_backbone_can_be_exported_to_onnx(
    backbone: Backbone, x: torch.Tensor, dynamo: bool, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed, which torch.onnx.export needs")
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed, which runs ONNX programs"
    )
    path = str(tmp_path / "backbone.onnx")
    if dynamo:
        torch.onnx.export(backbone, (x,), path, dynamic_shapes={"images": {0: B}}, dynamo=True)
    else:
        torch.onnx.export(
            backbone, (x,), path, input_names=["images"], dynamic_axes={"images": {0: "B"}}, dynamo=False
        )
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    assert_same(torch.from_numpy(found), backbone(x[:2]))


@pytest.mark.filterwarnings("ignore")
def test_onnx_is_told_that_it_has_no_such_op(tmp_path: Path) -> None:
    example, path = (IMAGES, torch.tensor([0, 1])), str(tmp_path / "step.onnx")
    with pytest.raises(RuntimeError, match="rotate_batch is not an ONNX op: export what follows it"):
        torch.onnx.export(Step(), example, path, dynamo=False)
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed, which torch.onnx.export needs")
    with pytest.raises(Exception, match=r"rotnet_fast\.rotate_batch_out"):
        torch.onnx.export(Step(), example, path, dynamo=True)
