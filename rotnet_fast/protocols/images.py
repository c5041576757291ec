"""The images of a pretraining, for the commands that look at its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rotnet_fast import checks
from rotnet_fast.data.crop import Decoder, RandomResizedCrop
from rotnet_fast.data.datasets import Dataset, load_dataset
from rotnet_fast.data.loaders import LoaderName, Streaming, open_dataset
from rotnet_fast.data.split import AnySplit, EncodedSplit
from rotnet_fast.engine.run_folder import loader_of, read_settings
from rotnet_fast.errors import ArgumentError, DataError
from rotnet_fast.plain import counted
from rotnet_fast.pretrained import Pretrained


def open_images(
    pretrained: Pretrained,
    device: torch.device,
    *,
    name: str | None = None,
    data_dir: Path | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    bad_images: str | None = None,
    loader: LoaderName | None = None,
    progress: bool = True,
    check_images: str = "structure",
    validation: int | None = None,
) -> tuple[Dataset[AnySplit], bool]:
    """Open the images of the pretraining, or others of the same size, in memory or streamed, with its crops.

    Args:
        pretrained: network whose images are opened.
        device: device of the batches.
        name: name of the data set; None for that of the pretraining.
        data_dir: its folder; None for that of the pretraining.
        limit_train, limit_test, validation: see `load_dataset`; None for those of the pretraining if the
            images are its images, and for none otherwise. A ``validation`` of 0 is none, too.
        bad_images: see `load_dataset`; None for what the pretraining did about them.
        loader: see `rotnet_fast.data.loaders.Streaming`; None for what the pretraining used.
        progress, check_images: see `rotnet_fast.data.loaders.open_dataset`.

    Returns:
        The images, and whether they come from those of the pretraining.

    Raises:
        ArgumentError: a value that cannot be used.
        DataError: the data set is missing, incomplete or damaged; or no other images were named, and those
            in the pretraining's folder are not those of the pretraining.
    """
    run, recipe = pretrained.run, pretrained.config
    settings = (read_settings(run) if run else None) or {}
    bad_images = bad_images or settings.get("bad_images", "fail")
    is_named_alike = name in (None, recipe.dataset)
    is_own = is_named_alike and data_dir is None
    name = name or recipe.dataset
    if is_own:
        data_dir = _own_folder(pretrained, settings.get("data_dir"))
    checks.check_images(name, data_dir, limit_train, limit_test)
    own_limits = recipe.limit_train, recipe.limit_test, recipe.validation
    is_elsewhere = is_named_alike and not is_own and name == "folder"
    has_same = is_named_alike and not is_elsewhere
    if is_elsewhere and any(own_limits):
        try:
            has_same = not _difference(pretrained, None, data_dir, own_limits, bad_images)
        except ArgumentError:  # too few images for the pretraining's limits
            has_same = False
    if has_same:
        limit_train = limit_train or recipe.limit_train
        limit_test = limit_test or recipe.limit_test
        validation = recipe.validation if validation is None else validation
    limits = limit_train, limit_test, validation or None
    if name == "cifar10" and recipe.image_size != checks.CIFAR10_SIDE:
        raise ArgumentError(
            f"dataset is cifar10, whose images have {checks.CIFAR10_SIDE} pixels, and the checkpoint is "
            f"of a network for {recipe.image_size}; give another --dataset, or another --checkpoint"
        )
    crop = None
    if recipe.is_cropped and name == "folder":
        crop = RandomResizedCrop(recipe.crop_scale, recipe.crop_ratio)
    begun = None
    if loader is None:
        loader, begun = "auto", loader_of(run) if run else None
    decoder: Decoder = recipe.decoder if device.type == "cuda" else "auto"
    try:
        dataset = open_dataset(
            name,
            data_dir,
            recipe.image_size,
            *limits[:2],
            Streaming(device, loader, crop, decoder, begun),
            progress=progress,
            bad_images=bad_images,
            check_images=check_images,
            validation=limits[2],
            display_name=settings.get("dataset_name") if is_own else None,  # that of the very images
        )
    except ArgumentError as error:
        blamed = str(error).partition(" is ")[0]
        chosen = dict(zip(("limit_train", "limit_test", "validation"), limits, strict=True))
        if is_own and blamed in chosen and chosen[blamed] == getattr(recipe, blamed):
            said = str(error).partition(":")[0]
            if limits == own_limits:  # which once were there
                raise _others(pretrained, data_dir, said) from error
            flag = blamed.replace("_", "-")
            raise ArgumentError(f"{said}; that is the pretraining's: give another with --{flag}") from error
        raise
    if is_own and (found := _difference(pretrained, dataset, data_dir, limits, bad_images)):
        raise _others(pretrained, data_dir, found)
    if is_elsewhere and not any(own_limits):
        has_same = not _difference(pretrained, dataset, data_dir, limits, bad_images)
    return dataset, has_same


def described(pretrained: Pretrained, has_same_images: bool) -> dict[str, Any]:
    """Return what results say of the pretraining, and whether they are about its images."""
    recipe = pretrained.config
    return {
        "epochs": pretrained.epoch,
        "is_limited": (recipe.limit_train, recipe.validation) != (None, None),
        "has_same_images": has_same_images,
    }


def _own_folder(pretrained: Pretrained, recorded: str | None) -> Path | None:
    """Return the folder of the pretraining's images; None for a data set that needs no folder."""
    kind, place = pretrained.config.dataset, None if recorded is None else Path(recorded)
    if kind == "folder":
        record = _record(pretrained)
        found = f"the images of this run were in {place}, as {record} says, but it does not exist"
        if place is None:
            found = f"the folder of the images of this run is unknown, as {record} does not name it"
        if place is None or not place.is_dir():
            raise DataError(f"{found}; give their folder with --data-dir")
    is_missing = kind == "cifar10" and place is not None and not place.exists()
    return None if is_missing else place  # the archive is the same wherever it lies


def _record(pretrained: Pretrained) -> Path:
    """Return the file that says where the images lie, if any does."""
    return pretrained.path if pretrained.run is None else pretrained.run / "config.json"


def _difference(
    pretrained: Pretrained,
    dataset: Dataset[AnySplit] | None,
    data_dir: Path | None,
    limits: tuple[int | None, ...],
    bad: str,
) -> str:
    """Say in what images differ from those that the network was pretrained on; empty if they are the same.

    Args:
        pretrained: the network.
        dataset: images found there now, after the limits; None if they have not been read.
        data_dir: their folder; None for a data set that needs no folder.
        limits: limits of training and test images, and how many are held out for validation.
        bad: what to do about damaged images.
    """
    recipe = pretrained.config
    known = pretrained.identity
    is_encoded = known["data_fingerprint"].startswith("files:")
    own_limits = recipe.limit_train, recipe.limit_test, recipe.validation
    if dataset is None or limits != own_limits or is_encoded != isinstance(dataset.train, EncodedSplit):
        if dataset is not None and limits == own_limits and "ablation" not in known:
            there, here = pretrained.images_per_epoch, len(dataset.train)
            if there is not None and there != here:
                return f"{counted(here, 'training image')} instead of {there:,}"  # without reading all
        # Fingerprints are over what was taken of a data set, and in what form.
        dataset = load_dataset(
            recipe.dataset,
            data_dir,
            recipe.image_size,
            *own_limits[:2],
            validation=recipe.validation,
            progress=False,
            bad_images=bad,
            encoded=is_encoded,
        )
    found = dataset.identity()
    for name, what in (
        ("data_fingerprint", "fingerprint"),
        ("data_contents", "digest of their contents"),
    ):
        old, new = (str(values.get(name)).removeprefix("files:")[:12] for values in (known, found))
        if old != new:
            return f"their {what} is {new}..., and the checkpoint's is {old}..."
    return ""


def _others(pretrained: Pretrained, data_dir: Path | None, finding: str) -> DataError:
    where = "" if data_dir is None else f" in {data_dir}, which {_record(pretrained)} names,"
    return DataError(
        f"the images{where} are not those of the pretraining: {finding}; restore them, or give "
        f"the folder of others with --data-dir"
    )
