"""Features of a pretrained network for downstream use.

backbone = rotnet_fast.load_backbone("runs/paper-cifar10-seed0")
maps = backbone.features(images, layer="conv2")     # uint8 [N,H,W,C] -> fp32 [N,192,8,8]
vectors = backbone(images)                          # uint8 [N,H,W,C] -> fp32 [N,192]
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import torch
from torch import nn

from rotnet_fast.backbone_inputs import check_images, checked_count, checked_numbers
from rotnet_fast.checks import check_device
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.precision import resolve_device
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.limits import VIEW_TYPES
from rotnet_fast.ops.reference import normalisation_coefficients
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import as_real, as_whole
from rotnet_fast.pretrained import Pretrained, read_pretrained, undescribed

DEFAULT_BATCH_SIZE = 256


class Backbone(nn.Module):
    """A pretrained network as an extractor of features: frozen, and always in eval mode.

    ``train()`` leaves it in eval mode, so that BatchNorm keeps its running statistics inside a larger module,
    too. To fine-tune, take the ``network`` out: ``network = backbone.network.requires_grad_(True).train()``.

    Args:
        network: what to extract from; its gradients are switched off.
        rotations: degrees counter-clockwise that its outputs stand for.
        mean, std: per channel, for pixel values in [0, 1]: what images are normalised with.
        image_size: H = W in pixels of the images that it was trained on; others work, too.
        metadata: what else is known, as text.

    Attributes:
        network: the `FeatureNetwork`; it takes normalised images.
        layers: names of the feature maps, ``conv1`` and so on.
        rotations, mean, std, image_size, metadata: as given.

    Images are either uint8 [N,H,W,C] with values 0..255, which are normalised, or floating [N,C,H,W], which
    are taken as normalised already: values that cannot be are refused, and those that hardly are cause a
    warning, see `rotnet_fast.backbone_inputs.check_images`. They may lie on another device than the network;
    results lie on the network's. No gradient is recorded unless the images, or a network that was thawed, ask
    for one. It computes in the type of its weights, inside ``torch.autocast``, too: for bfloat16, convert it
    with ``.bfloat16()``.

    Raises:
        ArgumentError: mean, std or rotations do not fit the network.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        rotations: Sequence[int],
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        image_size: int = 32,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        channels = network.in_channels
        self.network = network.requires_grad_(False)
        self.layers = network.layers
        self.rotations: tuple[int, ...] = checked_numbers(
            "rotations", rotations, network.num_classes, as_whole
        )
        self.mean: tuple[float, ...] = tuple(map(float, checked_numbers("mean", mean, channels, as_real)))
        self.std: tuple[float, ...] = tuple(map(float, checked_numbers("std", std, channels, as_real)))
        self.image_size = checked_count("image_size", image_size)
        self.metadata = dict(metadata or {})
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    @overload
    def features(
        self, images: torch.Tensor, layer: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> torch.Tensor: ...

    @overload
    def features(
        self,
        images: torch.Tensor,
        layer: list[str] | tuple[str, ...],
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> dict[str, torch.Tensor]: ...

    def features(
        self,
        images: torch.Tensor,
        layer: str | list[str] | tuple[str, ...] | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Feature maps, of the Network in Network after a block's pool; what comes after them does not run.

        Args:
            images: uint8 [N,H,W,C] or normalised floating [N,C,H,W], see the class.
            layer: a name out of ``layers``, or a list or tuple of several. None: the network's
                ``default_layer``, which is conv2 of the Network in Network.
            batch_size: images per forward pass.

        Returns:
            fp32 [N,C_layer,H_layer,W_layer], channels_last; for several layers a dictionary of them.

        Raises:
            TypeError: images that are no tensor, or of another type.
            ArgumentError: a wrong shape or number of channels, values that are not normalised, or a layer
                that this network lacks.
        """
        if isinstance(layer, (list, tuple)):
            return self._features(images, list(layer), batch_size, _as_they_are)
        name = self.network.default_layer if layer is None else layer
        return self._features(images, [name], batch_size, _as_they_are)[name]

    def forward(
        self, images: torch.Tensor, layer: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> torch.Tensor:
        """One vector per image: global-average-pooled features of a layer, fp32 [N,C_layer].

        Arguments and errors are those of :meth:`features`.
        """
        name = self.network.default_layer if layer is None else layer
        return self._features(images, [name], batch_size, _pooled)[name]

    def rotation_logits(self, images: torch.Tensor, batch_size: int = DEFAULT_BATCH_SIZE) -> torch.Tensor:
        """How the network would answer the pretext task.

        Args:
            images: uint8 [N,H,W,C], H = W.
            batch_size: images per forward pass; each gives K views.

        Returns:
            fp32 [N,K,K]: [n,k] are the logits of image n turned by ``rotations[k]``; a softmax over the last
            dimension gives the probability of each rotation.

        Raises:
            TypeError: images that are not uint8.
            ArgumentError: a wrong shape or number of channels.
            ValueError: images that cannot be turned.
        """
        batch_size = self._check(images, batch_size)
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 [N,H,W,C] to be turned, got {images.dtype}")

        def logits(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            turned = len(self.rotations)
            with self._as_converted():
                found = self.network(self._views(batch, self.rotations))
            return {"logits": found.view(-1, turned, turned)}

        return self._in_batches(images, batch_size, logits)["logits"]

    def _features(
        self,
        images: torch.Tensor,
        layers: list[str],
        batch_size: int,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        batch_size = self._check(images, batch_size)
        self.network.check_layers(layers)

        def maps(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            with self._as_converted():
                found = self.network.features(self._normalised(batch), layers)
            return {layer: reduce(found[layer].float()) for layer in layers}

        return self._in_batches(images, batch_size, maps)

    def _in_batches(
        self,
        images: torch.Tensor,
        batch_size: int,
        compute: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    ) -> dict[str, torch.Tensor]:
        """What ``compute`` gives for all images, [N,...] each, without a second copy of it in memory."""
        device = self._weight.device
        number = images.shape[0]  # not len, which would fix it in an exported program
        if torch.compiler.is_exporting() or number <= batch_size:
            return {name: part.float() for name, part in compute(images.to(device)).items()}
        whole: dict[str, torch.Tensor] = {}
        for start in range(0, number, batch_size):
            for name, part in compute(images[start : start + batch_size].to(device)).items():
                if name not in whole:
                    layout = torch.channels_last if part.dim() == 4 else torch.contiguous_format
                    shape = (number, *part.shape[1:])
                    whole[name] = torch.empty(shape, dtype=torch.float32, device=device, memory_format=layout)
                whole[name][start : start + batch_size] = part
        return whole

    @property
    def _weight(self) -> torch.Tensor:
        """One of the network's weights, which all have the same device and type."""
        return next(self.network.parameters())

    def _as_converted(self) -> torch.autocast:
        """Context in which the network computes in its weights' type, whatever is cast around it."""
        return torch.autocast(self._weight.device.type, enabled=False)

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] in the network's type, channels_last."""
        if batch.dtype == torch.uint8:
            is_exported = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            return self._in_plain_torch(batch) if is_exported else self._views(batch, (0,))
        return batch.to(self._weight.dtype, memory_format=torch.channels_last)

    def _in_plain_torch(self, batch: torch.Tensor) -> torch.Tensor:
        """What :meth:`_views` gives unturned, to the bit, for programs that run without this package."""
        scale, shift = normalisation_coefficients(self.mean, self.std, batch.device)
        return (batch.double() * scale + shift).float().to(self._weight.dtype).permute(0, 3, 1, 2)

    def _views(self, batch: torch.Tensor, rotations: tuple[int, ...]) -> torch.Tensor:
        """Normalised images uint8 [B,H,W,C] under each rotation, [B*K,C,H,W], not augmented."""
        dtype = self._weight.dtype
        return rotate_batch(
            batch.contiguous(),
            rotations=rotations,
            pad=0,
            flip_prob=0.0,
            mean=self.mean,
            std=self.std,
            dtype=dtype if dtype in VIEW_TYPES else torch.float32,
        )[0].to(dtype)

    def _check(self, images: torch.Tensor, batch_size: int) -> int:
        """Check what a call is given; return the batch size as an int."""
        check_images(images, self.mean, self.std)
        if images.is_meta and not self._weight.is_meta:
            raise ArgumentError("images is on meta, where tensors have no values: give images that have some")
        return checked_count("batch_size", batch_size)


def _as_they_are(maps: torch.Tensor) -> torch.Tensor:
    return maps


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(dim=(2, 3))


@plain_torch()
def load_backbone(path_or_name: str | os.PathLike[str], device: str | torch.device = "auto") -> Backbone:
    """A pretrained network, frozen and ready to extract features.

    Args:
        path_or_name: a folder or file that ``python -m rotnet_fast.export`` wrote; a run folder of ``python
            -m rotnet_fast.pretrain`` (its newest whole checkpoint is taken), or a checkpoint or snapshot in
            it; or the name of a model that ships with the package, see `rotnet_fast.pretrained.SHIPPED`. A
            name goes before a path.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ArgumentError: a device that there is not, or an empty path.
        CheckpointError: nothing there, damaged, or not of this program.
    """
    check_device(str(device))
    where = resolve_device(str(device))
    return backbone_of(read_pretrained(path_or_name, "path_or_name")).to(where)


def backbone_of(pretrained: Pretrained) -> Backbone:
    """The backbone of a pretrained network, on the CPU.

    Raises:
        CheckpointError: what is said of it does not fit its weights.
    """
    config = pretrained.config
    try:
        return Backbone(
            pretrained.network(),
            rotations=config.rotations,
            mean=pretrained.mean,
            std=pretrained.std,
            image_size=config.image_size,
            metadata={
                "model": config.model,
                "dataset": pretrained.dataset_name or config.dataset,
                "epochs": str(pretrained.epoch),
                "seed": str(config.seed),
                "state_hash": pretrained.state_hash(),
            },
        )
    except ValueError as error:
        raise undescribed(pretrained.path, error) from error
