"""Classification networks of torchvision and timm, and modules of others like them, with feature maps named
after their modules.

State-dict keys (stable; checkpoints rely on them) are those of the library's own model, without a prefix: the
weights of ``LibraryNetwork("resnet18", 4)`` are those of ``torchvision.models.resnet18(num_classes=4)``.

Both libraries are imported only when one of their networks is built: torchvision takes more than a second,
and its import fails beside a torch that it was not built for.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import nn

from rotnet_fast.config import NIN
from rotnet_fast.engine.ambient import TORCH
from rotnet_fast.errors import ArgumentError
from rotnet_fast.models.names import TIMM, unknown_model
from rotnet_fast.models.network import FeatureNetwork, check_input, check_names, checked_count

PROBE = 96
"""Height and width of the image that finds the feature maps: small, and a multiple of 32, the usual stride,
that leaves the last maps with more than one cell."""

_ONE_OUTPUT: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Networks of torchvision with auxiliary classifiers -> arguments that leave them one output. The
initialisation is given because torchvision warns without it."""


class ModuleNetwork(FeatureNetwork):
    """An ordinary module as a `FeatureNetwork`, with its own state-dict keys.

    ``layers`` are the network's direct children (and, with ``descends``, those in a list or in a wrapper)
    whose output is one map [B,C,H,W] with H > 1. A Sequential in which maps have three sizes or more holds
    several stages: its parts take its place, under names such as ``features.3``. Any other module with such
    an output, such as ``layer1.0.conv1``, may be requested as
    well; if it runs several times, its first output counts.

    Args:
        model: the module, on the CPU.
        name: its name, as in ``--model``.
        num_classes: number of outputs.
        in_channels: number of channels of the images.
        image_size: height and width of images that it accepts.

    Raises:
        ArgumentError: the module is unsuitable, because it takes images of other sizes only, has no feature
            maps, or cannot be traced.
    """

    uses_rng = True
    another: ClassVar[str] = "choose a convolutional network, such as resnet18"
    """What to do about a module without feature maps, or that cannot be traced."""

    descends: ClassVar[bool] = False
    """Whether children are looked into that are lists of modules, or where no child itself returns a map."""

    def __init__(
        self, model: nn.Module, name: str, num_classes: int, in_channels: int = 3, image_size: int = PROBE
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.model = model.to(memory_format=torch.channels_last)
        probe = PROBE
        try:
            self._maps = self._find_maps(probe)
        except ArgumentError:
            if image_size == PROBE:
                raise
            probe = image_size  # it may take images of the size alone that it was made for
            self._maps = self._find_maps(probe)
        self.layers = _stages(self.model, self._maps, self.descends)
        if not self.layers:
            raise ArgumentError(f"model {name} has no feature maps [B,C,H,W]; {self.another}")
        sides = [self._maps[layer][1] for layer in self.layers]
        larger = [layer for layer, side in zip(self.layers, sides, strict=True) if side > sides[-1]]
        self.default_layer = larger[-1] if larger else self.layers[max(0, len(self.layers) - 2)]
        self.stride = 2 ** int(math.log2(probe / sides[-1]))
        self._extractors: dict[tuple[str, ...], Any] = {}
        self._extractor([self.default_layer])  # refuse what cannot be traced now, not after training
        self.register_load_state_dict_pre_hook(_add_prefix)  # type: ignore[no-untyped-call]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch: [B,C,H,W] -> [B,num_classes]."""
        check_input(x, _weight(self.model))
        logits: torch.Tensor = self.model(x)
        return logits

    def features(self, x: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """See `FeatureNetwork`; the library's model decides the memory format of the maps."""
        self.check_layers(layers)
        check_input(x, _weight(self.model))
        maps: dict[str, torch.Tensor] = self._extractor(layers)(x)
        return maps

    def feature_module(self, layer: str) -> nn.Module:
        """See `FeatureNetwork`."""
        return self.model.get_submodule(layer)

    def feature_channels(self, layer: str) -> int:
        """Number of channels of a layer's feature map."""
        self.check_layers([layer])
        return self._maps[layer][0]

    def feature_parameters(self, layer: str) -> list[nn.Parameter]:
        """The parameters of all modules that run for a layer's feature map."""
        self.check_layers([layer])
        return list(self._extractor([layer]).parameters())

    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise an ArgumentError unless every name is that of a module whose output is a feature map."""
        check_names(layers, self.layers)
        for layer in layers:
            if layer not in self._maps:
                raise ArgumentError(
                    f"layers holds {layer!r}, which is no feature map of {self.name}; choose from "
                    f"{', '.join(self.layers)}, or from the modules in them"
                )

    def check_image_size(self, height: int, width: int) -> None:
        """Raise an ArgumentError unless the network accepts images of this size."""
        self._run(height, width)

    def train(self, mode: bool = True) -> ModuleNetwork:
        """Set the mode, also of the traced graphs."""
        super().train(mode)
        for extractor in self._extractors.values():
            extractor.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights and buffers under the keys of the module itself."""
        return self.model.state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, without traced graphs, which refer to this network's modules."""
        return {**self.__dict__, "_extractors": {}}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ModuleNetwork:
        """Move or convert, and drop traced graphs, which may hold a buffer that this replaces."""
        self._extractors.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @torch.no_grad()
    def _run(self, height: int, width: int) -> None:
        """Run the network on one black image, in eval mode."""
        weight = _weight(self.model)
        black = torch.zeros(1, self.in_channels, height, width, dtype=weight.dtype, device=weight.device)
        modes = _modes(self.model)
        try:
            logits = self.model.eval()(black)
        except Exception as error:  # networks raise various errors for images that they cannot take
            reason = str(error).strip().partition("\n")[0]
            remedy = "choose another size, or a convolutional network for any size, such as resnet18"
            if "view size is not compatible" in reason:
                remedy = "in its forward, use reshape instead of view, because maps are channels_last"
            raise ArgumentError(
                f"model {self.name} does not accept images of {height} x {width} pixels ({reason}); {remedy}"
            ) from error
        finally:
            _restore(modes)
        self._check_output(logits)

    def _check_output(self, output: Any) -> None:
        """Raise an ArgumentError unless this is what the model has to return for one image."""
        shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        if shape != [1, self.num_classes]:
            raise ArgumentError(
                f"model {self.name} returns {shape} for one image, not logits [1, {self.num_classes}]; "
                f"choose a classification network, such as resnet18"
            )

    def _find_maps(self, probe: int) -> dict[str, tuple[int, int]]:
        """Module -> channels and side of its square map for the probe, in order of execution."""
        maps: dict[str, tuple[int, int]] = {}

        def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def record(module: nn.Module, inputs: Any, output: Any) -> None:
                # The last two sides must be equal: maps [B,H,W,C] of transformers are no feature maps here.
                is_map = isinstance(output, torch.Tensor) and output.dim() == 4
                if is_map and output.shape[2] == output.shape[3]:
                    maps.setdefault(name, (output.shape[1], output.shape[2]))

            return record

        handles = [
            module.register_forward_hook(recorder(name))
            for name, module in self.model.named_modules()
            if name
        ]
        try:
            self._run(probe, probe)
        finally:
            for handle in handles:
                handle.remove()
        return maps

    def _extractor(self, layers: Sequence[str]) -> Any:
        """Trace the way from images to the maps of these layers, as a module that shares all submodules.

        Raises:
            ArgumentError: the network's own code cannot be traced.
        """
        wanted = tuple(name for name in self._maps if name in layers)
        if wanted not in self._extractors:
            try:
                extractor = _traced(self.model, wanted)
            except Exception as error:  # tracing runs the library's code, which may raise anything
                reason = str(error).strip().partition("\n")[0]
                raise ArgumentError(
                    f"model {self.name} cannot be traced for its feature maps {', '.join(wanted)} "
                    f"({reason}); {self.another}"
                ) from error
            _protect_maps(extractor)
            self._extractors[wanted] = extractor
        return self._extractors[wanted]


class LibraryNetwork(ModuleNetwork):
    """An untrained network of torchvision or timm.

    Args:
        name: name of a classification network of torchvision, or ``timm/`` and the name of one of timm.
        num_classes: number of outputs.
        in_channels: number of channels of the images; must be 3 unless the network is timm's.
        image_size: height and width of the images.

    Raises:
        ArgumentError: the network is unknown, its library is missing, or it is unsuitable, see
            `ModuleNetwork`.
    """

    def __init__(self, name: str, num_classes: int, in_channels: int = 3, image_size: int = PROBE) -> None:
        num_classes = checked_count("num_classes", num_classes, 1)
        in_channels = checked_count("in_channels", in_channels, 1)
        super().__init__(_create(name, num_classes, in_channels), name, num_classes, in_channels, image_size)


def _create(name: str, num_classes: int, in_channels: int) -> nn.Module:
    """Make the library's model, with weights drawn as the library does.

    Raises:
        ArgumentError: the model is unknown, its library is missing, or it does not accept that many channels.
    """
    if name.startswith(TIMM):
        timm = _import("timm", "timm", name)
        if not timm.is_model(name.removeprefix(TIMM)):
            raise unknown_model(name, [TIMM + other for other in timm.list_models()])
        arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
        from_timm: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=False, **arguments)
        return from_timm
    models = _import("torchvision.models", "torchvision", name)
    names = models.list_models(module=models)  # only classification; detection etc. have modules of their own
    if name not in names:
        raise unknown_model(name, names)
    if in_channels != 3:
        raise ArgumentError(
            f"model {name} accepts images of 3 channels, and these have {in_channels}; choose {NIN} or a "
            f"network of timm, such as {TIMM}resnet18"
        )
    arguments = {"num_classes": num_classes, **_ONE_OUTPUT.get(name, {})}
    from_torchvision: nn.Module = models.get_model(name, weights=None, **arguments)
    return from_torchvision


def _import(module: str, package: str, model: str) -> Any:
    try:
        return import_module(module)
    # torchvision raises a RuntimeError if it was built for another torch.
    except (ImportError, OSError, RuntimeError) as error:
        raise ArgumentError(
            f"model {model} needs {package}, which cannot be imported with torch {torch.__version__} "
            f"({error}); install one that fits: pip install {package}"
        ) from error


def _stages(model: nn.Module, maps: dict[str, tuple[int, int]], descends: bool) -> tuple[str, ...]:
    """Names of the layers in order of execution; see `ModuleNetwork`."""

    def below(parent: nn.Module, prefix: str) -> list[str]:
        names = []
        for child_name, child in parent.named_children():
            name = prefix + child_name
            parts = [
                maps[f"{name}.{part}"][1] for part, _ in child.named_children() if f"{name}.{part}" in maps
            ]
            is_container = descends and isinstance(child, (nn.ModuleList, nn.ModuleDict))
            if is_container or (isinstance(child, nn.Sequential) and len(set(parts)) > 2):
                names += below(child, f"{name}.")
            # A pool to a fixed size belongs to the classifier: it may even enlarge the last map.
            elif name in maps and maps[name][1] > 1 and not isinstance(child, nn.AdaptiveAvgPool2d):
                names.append(name)
        if not names and descends:
            names = [
                layer
                for child_name, child in parent.named_children()
                for layer in below(child, f"{prefix}{child_name}.")
            ]
        return names

    found = set(below(model, ""))
    return tuple(name for name in maps if name in found)


def _traced(model: nn.Module, layers: Sequence[str]) -> Any:
    """Make the module that computes the maps of these layers with the submodules of a model.

    Other threads may run the model and other modules meanwhile, although torch.fx sets modes, and changes how
    all modules of the process are called. So a double of the model is traced, which has the same tensors, and
    the tracer lets other threads' calls through.
    """
    extraction: Any = import_module("torchvision.models.feature_extraction")

    class OneThreadTracer(extraction.NodePathTracer):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._thread = threading.get_ident()

        def call_module(
            self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if threading.get_ident() != self._thread:
                return forward(*args, **kwargs)
            return super().call_module(m, forward, args, kwargs)

        def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
            if threading.get_ident() != self._thread:
                return attr_val
            return super().getattr(attr, attr_val, parameter_proxy_cache)

    tensors = (*model.parameters(), *model.buffers())
    double = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    with TORCH:  # torch.fx traces one module of a process at a time
        usual, extraction.NodePathTracer = extraction.NodePathTracer, OneThreadTracer
        try:
            extractor = extraction.create_feature_extractor(
                double,
                list(layers),
                tracer_kwargs={"leaf_modules": _leaf_types(double, layers)},
                suppress_diff_warning=True,
            )
        finally:
            extraction.NodePathTracer = usual
    for graph in (extractor.train_graph, extractor.eval_graph):
        for node in graph.nodes:
            if node.op == "call_module":
                extractor.set_submodule(node.target, model.get_submodule(node.target))
    return extractor


def _leaf_types(model: nn.Module, layers: Sequence[str]) -> list[type[nn.Module]]:
    """Types of modules that tracing treats as leaves: all except those that contain a layer.

    Thus the code of blocks need not be traceable, dropout in them follows their own mode, and BatchNorm may
    be changed after tracing.
    """
    parts = [layer.split(".") for layer in layers]
    holders = {
        type(model.get_submodule(".".join(path[:depth]))) for path in parts for depth in range(len(path))
    }
    types = {type(module) for module in model.modules()}
    return [kind for kind in types if not any(issubclass(holder, kind) for holder in holders)]


def _protect_maps(extractor: Any) -> None:
    """Copy every map but the last as soon as it is computed, because what follows may work in place.

    Otherwise, the ReLU after resnet18's bn1 would overwrite bn1's map if a later layer is requested, too.
    """
    for graph in (extractor.train_graph, extractor.eval_graph):
        output = graph.output_node()
        for node in list(output.args[0].values())[:-1]:
            with graph.inserting_after(node):
                clone = graph.call_method("clone", (node,))
            output.replace_input_with(node, clone)
    extractor.recompile()


def _weight(model: nn.Module) -> torch.Tensor:
    """A tensor of the type and on the device of a model's weights; it may have none."""
    return next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    """Mode of every module, because BatchNorm may be in another mode than the network."""
    return {module: module.training for module in model.modules()}


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the model's keys to those of the module that holds it, when a state is loaded."""
    others = tuple(f"{prefix}{name}." for name in module._modules if name != "model")
    for key in [key for key in state if key.startswith(prefix) and not key.startswith(others)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
