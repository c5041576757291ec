"""Heads on the feature maps of one backbone, frozen or trained along.

Source: Gidaris et al., ICLR 2018, Tables 1-3; schedules of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rotnet_fast.engine.task import ParameterGroup, parameter_groups
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.heads import ConvClassifier, NonLinearClassifier
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.protocols.classification import ObjectClassification, ObjectViews
from rotnet_fast.settings import Optimisation

HEADS = ("nonlinear", "conv", "perceptron")
"""The two of the paper, and the non-linear one with the layers that scattering was published with."""

MILESTONES: dict[str, tuple[int, ...]] = {
    "conv": (35, 70, 85),
    "nonlinear": (20, 40, 45),
    "perceptron": (20, 40, 45),
}
"""Head -> epochs out of 100 after which the learning rate is divided by five. Source: the released code."""


PERCEPTRONS: dict[str, int | None] = {"nonlinear": None, "perceptron": 1024}
"""Head of two hidden layers -> their units; None for the paper's number."""


class HeadsOnBackbone(nn.Module):
    """A backbone and heads on its feature maps, all fed from one forward pass.

    A frozen backbone stays in eval mode and gets no gradients, whatever the heads do.

    State-dict keys (stable): ``backbone.*`` as in `rotnet_fast.models.nin` or `rotnet_fast.models.library`,
    and ``heads.{head_name}.*`` as in `rotnet_fast.models.heads`, see :func:`head_name`.

    Args:
        backbone: network that has the layers.
        placements: (layer, kind of head) of each head; a kind is one of ``HEADS``.
        image_shape: (C, H, W) of the images.
        num_classes: object classes.
        width: width multiplier of the conv heads.
        seed: seed of the heads' first weights, which depend on nothing else: a head starts the same,
            whichever others there are.
        frozen: False also trains the backbone, up to the last of the layers.

    Shape:
        views [B,C,H,W] -> {``{layer}_{head}``: logits [B,num_classes]}.

    Raises:
        ArgumentError: an unknown layer or head, or none at all.
    """

    def __init__(
        self,
        backbone: FeatureNetwork,
        placements: Sequence[tuple[str, str]],
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        width: float,
        seed: int,
        frozen: bool,
    ) -> None:
        super().__init__()
        kinds = [kind for _, kind in placements]
        if not kinds or not set(kinds) <= set(HEADS):
            raise ArgumentError(f"heads is {', '.join(kinds) or 'empty'}; choose from {', '.join(HEADS)}")
        self.backbone = backbone.requires_grad_(not frozen)
        self.frozen = frozen
        self.placements = tuple(dict.fromkeys(placements))
        self.layers = tuple(dict.fromkeys(layer for layer, _ in self.placements))
        self.heads = nn.ModuleDict()
        sizes = self._feature_sizes(image_shape)
        for layer, kind in self.placements:
            generator = torch.Generator().manual_seed(seed)
            head = make_head(kind, sizes[layer], num_classes, width, generator, backbone.most_cells)
            if not backbone.is_standardised:
                head = nn.Sequential(nn.BatchNorm2d(sizes[layer][0], affine=False), head)
            self.heads[head_name(layer, kind)] = head

    def _feature_sizes(self, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, int, int]]:
        """Find (C, H, W) of each layer by one forward pass in eval mode, which changes no statistics.

        It takes two images: one alone has no variance where BatchNorm uses the batch's statistics.
        """
        self.backbone.eval()
        device = self.backbone.device
        with torch.no_grad():
            maps = self.backbone.features(torch.zeros(2, *image_shape, device=device), self.layers)
        return {layer: (x.shape[1], x.shape[2], x.shape[3]) for layer, x in maps.items()}

    def train(self, mode: bool = True) -> HeadsOnBackbone:
        """Set the mode of everything but a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, views: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits of every head."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.backbone.features(views, self.layers)
        return {
            head_name(layer, kind): self.heads[head_name(layer, kind)](maps[layer])
            for layer, kind in self.placements
        }


def make_head(
    kind: str,
    shape: tuple[int, int, int],
    num_classes: int,
    width: float,
    generator: torch.Generator | None = None,
    most_cells: int | None = None,
) -> nn.Module:
    """Make a head of a kind of ``HEADS`` for feature maps of a shape (C, H, W)."""
    channels, height, breadth = shape
    if kind in PERCEPTRONS:
        hidden = PERCEPTRONS[kind]
        return NonLinearClassifier(channels, height, breadth, num_classes, generator, most_cells, hidden)
    return ConvClassifier(channels, num_classes, width, generator)


def head_name(layer: str, kind: str) -> str:
    """Return a head's name in state dicts and metrics, without the dots that modules must not have."""
    return f"{layer.replace('.', '-')}_{kind}"


def heads_task(module: HeadsOnBackbone, views: ObjectViews, recipe: Optimisation) -> ObjectClassification:
    """Train heads, and the backbone up to the last of their layers unless it is frozen.

    Args:
        module: on the device of ``views``; with a trained backbone, it has one head.
        recipe: how to train; without milestones, each head follows the published ones of its kind.
    """
    groups: list[ParameterGroup] = []
    for layer, kind in module.placements:
        name = head_name(layer, kind)
        parameters = list(module.heads[name].parameters())
        if not module.frozen:
            parameters += module.backbone.feature_parameters(layer)
        groups += parameter_groups(name, parameters, *recipe.schedules(MILESTONES[kind]))
    return ObjectClassification(module, module, groups, views)


def use_batch_statistics(backbone: nn.Module) -> None:
    """Make every BatchNorm normalise with the statistics of its batch, in eval mode, too.

    This is for an untrained network, whose running statistics describe no data. It has none afterwards, so
    that nothing in a frozen backbone can change.
    """
    for module in backbone.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
