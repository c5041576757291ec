"""`train_rotnet`: the command ``python -m rotnet_fast.pretrain`` as a function, and for images in memory."""

from __future__ import annotations

import difflib
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotnet_fast.config import PretrainConfig
from rotnet_fast.dependencies import named_if_missing
from rotnet_fast.engine.distributed import is_main
from rotnet_fast.engine.signals import Interrupted
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.files import named
from rotnet_fast.models.names import check_model_name, own_name
from rotnet_fast.pretrain import OwnParts, base_settings, pretrain
from rotnet_fast.verdict import of_pretraining

if TYPE_CHECKING:
    from torch import nn

    from rotnet_fast.backbone import Backbone
    from rotnet_fast.image_layout import Layout


@dataclass(frozen=True)
class TrainedRotNet:
    """What :func:`rotnet_fast.train_rotnet` returns.

    Attributes:
        backbone: the trained network, frozen, which makes features of images.
        metrics: the content of results.json; accuracies in percent.
        folder: the run folder, which every command takes.
    """

    backbone: Backbone
    metrics: dict[str, Any]
    folder: Path


@named_if_missing("train_rotnet")
def train_rotnet(
    dataset: Any,
    model: str | nn.Module | None = None,
    *,
    test: Any = None,
    layout: Layout | None = None,
    progress: bool = False,
    **settings: Any,
) -> TrainedRotNet:
    """Pretrain on images of a program's own, or on a data set by name: the command as a function.

    Images in memory are read once, before the first step, and kept as uint8; augmentation belongs to the
    training, not into ``dataset``. They give the same weights, to the bit, as a folder of the same images in
    the same order would.

    Args:
        dataset: ``digits``, ``cifar10``, or the path of a folder, see ``--dataset``; a uint8 array or tensor
            [N,H,W,3] or [N,3,H,W]; a map-style data set of torch, or a list, of PIL images or of uint8
            images [H,W,3] or [3,H,W], each alone or in a tuple with its label. Labels only count for
            ``monitor``.
        model: a name as in ``--model``, ``nin`` by default; or a module that maps normalised images [B,3,H,W]
            to logits [B,K] of the K rotations, or of the classes of another pretext task, or to features
            [B,F] or [B,F,h,w], which get a linear head. A module is copied, and starts from the weights that
            it has. Its layers are its direct children that return maps; its own forward has to be traceable
            by torch.fx.
        test: images to test on, of the same kinds as ``dataset``. None: a folder's or data set's own, or
            else every 20th image (of each class, in class folders), which is then not trained on.
        layout: ``NHWC`` or ``NCHW``, for images of which either could be true.
        progress: print what the command prints.
        settings: fields of `PretrainConfig`, such as ``preset="speedrun"``, ``epochs``, ``batch_size``,
            ``image_size``, ``output`` and ``resume``. The preset, or the run to resume, supplies the rest,
            but without ``image_size`` images in memory must be squares of one size.

    Returns:
        The backbone, the results and the run folder. A module's network is loaded again by
        ``load_backbone(folder, model=module)``.

    Raises:
        TypeError: an argument is of the wrong kind, or there is no such setting.
        RotnetError: see :func:`rotnet_fast.pretrain.pretrain`.
        Interrupted: a signal, of which Ctrl-C is one, stopped the run. This is a KeyboardInterrupt that says
            how to resume.
    """
    from torch import nn

    from rotnet_fast.backbone import load_backbone
    from rotnet_fast.data import own
    from rotnet_fast.models.own import check_module

    for name in settings.keys() - PretrainConfig.__dataclass_fields__.keys():
        near = difflib.get_close_matches(name, PretrainConfig.__dataclass_fields__, n=1)
        raise TypeError(f"unknown setting {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    if model is not None and not isinstance(model, str):
        check_module(model)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ArgumentError(
                f"model {own_name(model)} has no parameters to train; pass a network whose parameters "
                f"require gradients"
            )
    checked = PretrainConfig(**settings)  # before the data set is looked at
    given, network = dict(settings), model if isinstance(model, nn.Module) else None
    images = None
    if "data_dir" in settings and not (isinstance(dataset, str) and dataset == "cifar10"):
        raise ArgumentError("data_dir only applies to dataset cifar10: omit it")
    if isinstance(dataset, (str, os.PathLike)):
        for name, value in (("test", test), ("layout", layout)):
            if value is not None:
                raise ArgumentError(
                    f"{name} only applies to images in memory, and dataset is {dataset}: omit it"
                )
        given["dataset"] = dataset
        if dataset not in ("cifar10", "digits"):
            if not named(dataset, "dataset").is_dir():
                raise DataError(f"dataset is {dataset}, which is neither cifar10 nor digits nor a folder")
            given |= {"dataset": "folder", "data_dir": dataset}
    else:
        image_size = checked.image_size if "image_size" in settings else None
        images = own.own_images(dataset, test, image_size, layout)
        given |= {"dataset": own.NAME, "data_dir": None, "image_size": images.image_size}
        if checked.crop == "auto":
            given["crop"] = "pad"
    if model is not None:
        given["model"] = model if network is None else own_name(network)
    config = replace(base_settings(given), **given)
    if network is None:
        check_model_name(config.model)
    try:
        results = pretrain(config, OwnParts(images, network, progress))
    except Interrupted as interruption:
        again = f"train_rotnet(..., resume={str(config.output_folder())!r})"
        interruption.args = (f"{interruption}; the run is saved: resume it with {again}",)
        raise
    folder = config.output_folder()
    if (wrong := of_pretraining(results)) is not None and is_main():
        # 3: of the decorator's caller. With the folder, since Python tells of the same sentence only once.
        warnings.warn(f"{wrong.sentence} (run folder: {folder})", stacklevel=3)
    return TrainedRotNet(load_backbone(folder, config.device, network), results, folder)
