"""Backbone.embed: images of every kind come to the same vectors, and what is no image is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, exif, pixels, save
from PIL import Image

from rotnet_fast.backbone import Backbone
from rotnet_fast.data.decode import decode_image, fit_image
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.models.build import make_network
from rotnet_fast.models.nin import NetworkInNetwork


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache folder is left alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))


def backbone_of(network: Any, **changes: Any) -> Backbone:
    return Backbone(network, rotations=(0, 90, 180, 270), image_size=16, **changes)


@pytest.fixture
def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return backbone_of(NetworkInNetwork(width=0.1))


@pytest.fixture
def images() -> Any:
    return np.stack([pixels(number, 40, 26) for number in range(5)])


@pytest.mark.parametrize("is_cropped", [False, True])
def test_every_kind_of_images_gives_the_same_vectors(
    backbone: Backbone, images: Any, tmp_path: Path, is_cropped: bool
) -> None:
    backbone.is_cropped = is_cropped
    fitted = np.stack([fit_image(Image.fromarray(image), 16, is_cropped) for image in images])
    expected = backbone(torch.from_numpy(fitted))
    paths = [tmp_path / "in" / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=True):
        save(path, image)
    tensor = torch.from_numpy(images)
    kinds: list[Any] = [
        images,
        images.transpose(0, 3, 1, 2),
        tensor,
        tensor.permute(0, 3, 1, 2),
        [Image.fromarray(image) for image in images],
        tuple(Image.fromarray(image) for image in images),
        paths,
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        tmp_path / "in",
        str(tmp_path / "in"),
    ]
    for what in kinds:
        found = backbone.embed(what)
        assert (found.dtype, found.requires_grad) == (torch.float32, False)
        assert torch.equal(found, expected)
    assert torch.equal(backbone.embed(images, "conv1"), backbone(torch.from_numpy(fitted), "conv1"))
    for batch_size in (1, 2, 5):
        in_batches = backbone(torch.from_numpy(fitted), batch_size=batch_size)
        assert torch.equal(backbone.embed(paths, batch_size=batch_size), in_batches)
        assert torch.equal(backbone.embed(images, batch_size=batch_size), in_batches)


def test_images_of_the_right_size_are_not_touched(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(backbone.embed(images), backbone(images))
    assert torch.equal(backbone.embed(images[::2, :, 1:]), backbone.embed(images[::2, :, 1:].clone()))


def test_pil_images_are_turned_and_converted_as_files_are(backbone: Backbone, tmp_path: Path) -> None:
    files = {
        "turned.jpg": encoded(pixels(1, 20, 30), "JPEG", exif=exif(6)),
        "grey.png": encoded(Image.fromarray(pixels(2, 20, 30)).convert("L")),
        "clear.png": encoded(Image.fromarray(pixels(3, 20, 30)).convert("RGBA").rotate(30)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in files]
    decoded = torch.from_numpy(np.stack([decode_image(str(path), 16) for path in paths]))
    assert torch.equal(backbone.embed([Image.open(path) for path in paths]), backbone(decoded))


def test_read_only_arrays_are_taken_without_a_warning(
    backbone: Backbone, images: Any, recwarn: pytest.WarningsRecorder
) -> None:
    images.setflags(write=False)
    assert backbone.embed(images).shape == (5, 16)
    assert list(recwarn) == []


def test_the_layout_is_told_or_asked_for(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (2, 3, 8, 3), dtype=torch.uint8)
    with pytest.raises(ArgumentError, match=r"\[2, 3, 8, 3\], which may be NHWC or NCHW; pass layout="):
        backbone.embed(images)
    by_name = {layout: backbone.embed(images, layout=layout) for layout in ("NHWC", "NCHW")}  # type: ignore[arg-type]
    assert torch.equal(by_name["NCHW"], backbone.embed(images.permute(0, 2, 3, 1), layout="NHWC"))
    assert not torch.equal(by_name["NHWC"], by_name["NCHW"])


PICTURE = Image.new("RGB", (4, 4))
UINT8 = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("what", "changes", "error", "says"),
    [
        ([], {}, ArgumentError, "what is empty; pass at least one image"),
        (UINT8[:0], {}, ArgumentError, r"shape \[0, 8, 8, 3\], which is empty; pass at least one"),
        ("", {}, ArgumentError, "what is empty; give a path"),
        (UINT8.float(), {}, TypeError, r"what is Tensor of torch\.float32 .*; pass uint8 .*to\(torch\.uint8"),
        (UINT8.numpy() / 255, {}, TypeError, r"what is ndarray of float64 .*\.round\(\)\.astype\('uint8'\)"),
        (UINT8.long(), {}, TypeError, r"what is Tensor of torch\.int64 with shape \[2, 8, 8, 3\]"),
        (UINT8[0], {}, ArgumentError, r"shape \[8, 8, 3\]; add the first dimension with what\[None\]"),
        (UINT8[..., 0], {}, ArgumentError, r"shape \[2, 8, 8\]; repeat grey images"),
        (UINT8[..., :2], {}, ArgumentError, r"shape \[2, 8, 8, 2\], without 3 channels .*; pass RGB"),
        (UINT8, {"layout": "NCHW"}, ArgumentError, r"layout is NCHW, but what has .*; pass NHWC"),
        (UINT8, {"layout": "HWC"}, ArgumentError, "layout is 'HWC'; it must be NHWC, NCHW"),
        ([PICTURE], {"layout": "NHWC"}, ArgumentError, "which only applies to arrays and tensors; remove"),
        (["a.png", PICTURE], {}, TypeError, "what mixes path at 0 and Image at 1; pass images of one kind"),
        ([UINT8[0]], {}, TypeError, r"what is a list of Tensor; stack .* torch\.stack"),
        ([UINT8[0].numpy()], {}, TypeError, r"what is a list of ndarray; stack .* np\.stack"),
        ([1, 2], {}, TypeError, "what is a list of int; it must be a folder, a list of paths"),
        (PICTURE, {}, TypeError, r"what is a single PIL image; pass a list of them: \[image\]"),
        (None, {}, TypeError, "what is None; it must be a folder, a list of paths"),
        ({"a": 1}, {}, TypeError, r"what is \{'a': 1\}; it must be"),
        (b"photos", {}, TypeError, "what is b'photos'; it must be"),
        ("nowhere", {}, DataError, "what is nowhere, which does not exist; pass a folder of images"),
        (["nowhere.png"], {}, DataError, r"what holds nowhere\.png at 0, which does not exist; pass paths"),
        (["."], {}, DataError, r"what holds \. at 0, which is not a file; pass paths"),
        (__file__, {}, ArgumentError, r"test_backbone_embed\.py, a file; pass a folder, or .* \[path\]"),
        ([__file__], {}, DataError, r"test_backbone_embed\.py cannot be read as an image.*; repair or"),
        ([Image.new("I;16", (4, 4))], {}, DataError, r"what\[0\] is a grey image of 16 bits"),
        (UINT8, {"layer": "conv9"}, ArgumentError, "layers holds 'conv9'"),
        (UINT8, {"batch_size": 0}, ArgumentError, "batch_size is 0; it must be at least 1"),
    ],
)
def test_what_is_no_image_is_refused(
    backbone: Backbone, what: Any, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        backbone.embed(what, **changes)
    assert "\n" not in str(refused.value)


def test_networks_of_other_channels_are_refused() -> None:
    backbone = Backbone(
        NetworkInNetwork(width=0.1, in_channels=1), rotations=(0, 90, 180, 270), mean=(0.5,), std=(0.5,)
    )
    with pytest.raises(ArgumentError, match=r"takes images of 1 channel, but embed .*; call the backbone"):
        backbone.embed(UINT8)


@pytest.mark.parametrize("model", ["nin", "resnet18"])
def test_one_pass_gives_vectors_and_rotations(model: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = backbone_of(make_network(4, 3, model))
        images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    for layer in backbone.layers:
        vectors, probabilities = backbone.vectors_and_rotations(images, layer)
        assert torch.equal(vectors, backbone(images, layer))
    assert torch.equal(probabilities, backbone.network(backbone._normalised(images)).softmax(dim=1))
    assert torch.equal(backbone.vectors_and_rotations(images)[0], backbone(images))
    assert not any(module._forward_hooks for module in backbone.modules())
    if model == "resnet18":  # what follows bn1 works in place
        assert torch.equal(backbone.vectors_and_rotations(images, "bn1")[0], backbone(images, "bn1"))
