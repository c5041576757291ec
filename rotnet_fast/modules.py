"""The pretext task as modules for training loops of your own: the fused op, and the rotation loss.

views, labels = rotnet_fast.RotateBatch()(images)            # uint8 [B,H,W,C] or [B,C,H,W] -> [B*4,C,H,W]
loss, accuracy = rotnet_fast.RotationLoss(network, 192)(images)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from rotnet_fast.errors import ArgumentError
from rotnet_fast.image_layout import Layout, channels_last, check_layout
from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.arguments import checked_normalisation, checked_pad, checked_probability
from rotnet_fast.ops.limits import VIEW_TYPES
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import as_sequence, as_whole, counted, shown
from rotnet_fast.rotations import FOUR_ROTATIONS, check_rotations

_IDS_PER_PROCESS = 1 << 40
"""More images than a batch has: the sample ids of each process begin at a multiple of it."""


class RotateBatch(nn.Module):
    """Make rotated views of uint8 images, with :func:`rotnet_fast.rotate_batch`.

    In training mode, images are cropped and flipped at random, anew at every call; in eval mode, not at all.
    The draws are a function of the seed, the number of calls in training mode so far and, unless
    ``sample_ids`` are given, the place in the batch and the process of a distributed training. Seed and calls
    are in the ``state_dict``, so that a resumed training goes on with the draws that it would have had.

    Args:
        rotations: K whole degrees, counter-clockwise; label k stands for ``rotations[k]``.
        pad: pixels of black border that a random crop may include; 0 disables the crop.
        flip_prob: probability of a left-right flip before the rotations.
        mean, std: one value per channel, for pixel values scaled to [0, 1], to normalise with.
        dtype: torch.float32, torch.bfloat16 or torch.float16, of the views.
        seed: of the draws, in [0, 2**63).
        layout: order of the dimensions of images. None: told from which one has as many channels as ``mean``.

    Raises:
        ArgumentError: an argument has an invalid value.
    """

    key: torch.Tensor

    def __init__(
        self,
        rotations: Sequence[int] = FOUR_ROTATIONS,
        *,
        pad: int = 4,
        flip_prob: float = 0.5,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        try:
            self.rotations = tuple(check_rotations(rotations))
        except (TypeError, ValueError) as error:
            raise ArgumentError(str(error)) from None
        check_layout(layout)
        if dtype not in VIEW_TYPES:
            raise ArgumentError(f"dtype is {dtype}; it must be one of {', '.join(map(str, VIEW_TYPES))}")
        number = as_whole(seed)
        if number is None or not 0 <= number < 2**63:
            raise ArgumentError(f"seed is {shown(seed)}; it must be an integer in [0, 2**63)")
        for name, values in (("mean", mean), ("std", std)):
            if as_sequence(values) is None or not 1 <= len(tuple(values)) <= 4:
                raise ArgumentError(
                    f"{name} is {shown(values)}; it must be a sequence, one value for each of 1 to 4 channels"
                )
        if len(mean) != len(std):
            raise ArgumentError(
                f"mean has {counted(len(mean), 'value')} and std {len(std)}; give one per channel to both"
            )
        self.dtype, self.layout = dtype, layout
        with torch.inference_mode(False), torch.no_grad():  # in which a tensor could never be counted up
            self.register_buffer("key", torch.tensor([number, 0]))  # (seed, calls in training mode)
            # The op knows best what it accepts.
            black = torch.zeros(1, 1, 1, len(mean), dtype=torch.uint8, device="cpu")
            try:
                # As Python's own numbers: a tensor could be changed by the caller, and cannot be compiled.
                self.pad, self.flip_prob = checked_pad(pad), checked_probability(flip_prob)
                is_warped = any(angle % 90 for angle in self.rotations)
                self.mean, self.std = map(tuple, checked_normalisation(mean, std, len(mean), is_warped))
                self._views(black, None, key=torch.tensor([number, 0], device="cpu"))
            except (TypeError, ValueError) as error:
                raise ArgumentError(str(error)) from None

    def forward(
        self, images: torch.Tensor, sample_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make all K views of each image.

        Args:
            images: uint8 [B,H,W,C] or [B,C,H,W], with values 0..255.
            sample_ids: int64 [B], numbers of the images, with which the draws do not depend on how images are
                batched.

        Returns:
            ``dtype`` [B*K,C,H,W], channels_last: view n*K + k is image n under ``rotations[k]``; and int64
            [B*K], the position k.

        Raises:
            ArgumentError: images are not uint8, not of these shapes, or fit both.
            ValueError: see :func:`rotnet_fast.rotate_batch`.
        """
        found = self._views(self.stored(images), sample_ids, self.key)
        if self.training:
            self.key[1] += 1
        return found

    def _views(
        self, images: torch.Tensor, sample_ids: torch.Tensor | None, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Not by the seed: DistributedDataParallel gives all processes the first one's buffers.
        if sample_ids is None and (rank := _rank()) > 0:
            sample_ids = torch.arange(len(images), device=images.device) + rank * _IDS_PER_PROCESS
        return rotate_batch(
            images,
            sample_ids=sample_ids,
            rotations=self.rotations,
            seed=key,
            pad=self.pad if self.training else 0,
            flip_prob=self.flip_prob if self.training else 0.0,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
        )

    def stored(self, images: torch.Tensor) -> torch.Tensor:
        """Return images as the op takes them: uint8 [B,H,W,C], contiguous.

        Raises:
            ArgumentError: see :meth:`forward`.
        """
        if not isinstance(images, torch.Tensor):
            raise ArgumentError(f"images is {shown(images)}; it must be a uint8 tensor")
        if images.dtype != torch.uint8:
            remedy = "pass them as they are stored, before they are scaled and normalised"
            raise ArgumentError(
                f"images are {images.dtype}, and they must be uint8 with values 0..255: {remedy}"
            )
        if images.device != self.key.device:
            raise ArgumentError(
                f"images are on {images.device}, and this module is on {self.key.device}; move it with "
                f".to({str(images.device)!r})"
            )
        remedy = "give mean and std one value per channel"
        return channels_last(images, self.layout, "images", len(self.mean), remedy).contiguous()

    def extra_repr(self) -> str:
        """Show the settings in the module's repr."""
        return f"rotations={self.rotations}, pad={self.pad}, flip_prob={self.flip_prob}, dtype={self.dtype}"


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


class Rotation(NamedTuple):
    """What a `RotationLoss` returns.

    Attributes:
        loss: fp32 [] with a graph, mean cross-entropy over the B*K views.
        accuracy: fp32 [], share of the views whose rotation was recognised, in [0, 1].
    """

    loss: torch.Tensor
    accuracy: torch.Tensor


class RotationLoss(nn.Module):
    """Predict rotations as an auxiliary task of any network: makes the views, and adds a linear head.

    ``parameters()`` are the head's alone: the network stays the caller's, in its optimiser, its mode and, if
    it is wrapped for several processes, its wrapper.

    ``rotation = RotationLoss(network, features=192)`` is trained by an optimiser of both modules' parameters,
    on ``loss = supervised_loss + 0.5 * rotation(images).loss``.

    Args:
        network: maps normalised views [V,C,H,W] to features [V,F], or to maps [V,F,h,w], whose mean over
            places is taken.
        features: F.
        others: arguments of `RotateBatch`, such as ``pad`` and ``mean``.

    Source: Gidaris et al., ICLR 2018, for the task. As an auxiliary loss: Zhai et al., "S4L: Self-Supervised
    Semi-Supervised Learning", ICCV 2019; Gidaris et al., "Boosting Few-Shot Visual Learning with
    Self-Supervision", ICCV 2019; Chen et al., "Self-Supervised GANs via Auxiliary Rotation Loss", CVPR 2019.

    Raises:
        ArgumentError: an argument has an invalid value.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], features: int, **others: Any) -> None:
        super().__init__()
        count = as_whole(features)
        if count is None or count < 1:
            raise ArgumentError(f"features is {shown(features)}; it must be an integer of at least 1")
        if not callable(network):
            raise ArgumentError(f"network is {shown(network)}; it must be a module or a function")
        self.rotate = RotateBatch(**others)
        self.head = nn.Linear(count, len(self.rotate.rotations))
        self._network = (network,)  # in a tuple, so that its parameters are not this module's

    def forward(self, images: torch.Tensor, sample_ids: torch.Tensor | None = None) -> Rotation:
        """Compute the loss on all rotated views of a batch.

        Args:
            images, sample_ids: see :meth:`RotateBatch.forward`; images need no labels.

        Raises:
            ArgumentError: the images are unusable, or the network returned features of another shape.
        """
        views, labels = self.rotate(images, sample_ids)
        return self.of_features(self._network[0](views), labels)

    def of_features(self, features: torch.Tensor, labels: torch.Tensor) -> Rotation:
        """Compute the loss from features of views that the network has seen already.

        A network with BatchNorm should see labelled images and rotated views in one batch, because in eval
        mode it normalises by what it has seen of both: make views with ``rotate``, give the network both, and
        this method the features of the views.

        Args:
            features: [V,F], or maps [V,F,h,w].
            labels: int64 [V], from ``rotate``.

        Raises:
            ArgumentError: the features have another shape.
        """
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
            raise ArgumentError(f"labels is {shown(labels)}; pass those that rotate returned, int64 [V]")
        count, wanted = len(labels), self.head.in_features
        is_tensor = isinstance(features, torch.Tensor) and features.dim() in (2, 4)
        if not is_tensor or tuple(features.shape[:2]) != (count, wanted):
            kind = type(features).__name__
            got = f"shape {list(features.shape)}" if isinstance(features, torch.Tensor) else kind
            raise ArgumentError(
                f"network returned {got} for {counted(count, 'view')}; with features={wanted}, it must be "
                f"[{count},{wanted}] or [{count},{wanted},h,w]"
            )
        pooled = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        logits = self.head(pooled.to(self.head.weight.dtype)).float()
        with torch.no_grad():
            accuracy = (logits.argmax(dim=1) == labels).float().mean()
        # Not reduced by cross_entropy, which rounds differently from the pretraining's mean.
        return Rotation(functional.cross_entropy(logits, labels, reduction="none").mean(), accuracy)
