"""Feature extraction with a pretrained network for downstream use.

backbone = rotnet_fast.load_backbone("runs/paper-cifar10-seed0")
maps = backbone.features(images, layer="conv2")     # uint8 [N,H,W,C] -> fp32 [N,192,8,8]
vectors = backbone(images)                          # uint8 [N,H,W,C] -> fp32 [N,192]
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from rotnet_fast.backbone_inputs import check_images, checked_count, checked_numbers
from rotnet_fast.checks import check_device
from rotnet_fast.dependencies import named_if_missing
from rotnet_fast.engine.ambient import plain_torch
from rotnet_fast.engine.precision import resolve_device
from rotnet_fast.engine.run_folder import is_part_of_run
from rotnet_fast.errors import ArgumentError, CheckpointError
from rotnet_fast.files import ensure_folder, named, write_atomically
from rotnet_fast.models.network import FeatureNetwork
from rotnet_fast.models.own import check_module
from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.limits import VIEW_TYPES
from rotnet_fast.ops.reference import normalisation_coefficients
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.plain import as_real, as_whole, counted
from rotnet_fast.pretext_tasks import ROTATION
from rotnet_fast.pretrained import MODEL_FILE, Pretrained, read_pretrained, undescribed

if TYPE_CHECKING:
    from rotnet_fast.backbone_images import Images
    from rotnet_fast.image_layout import Layout

DEFAULT_BATCH_SIZE = 256


class Backbone(nn.Module):
    """Extract features with a pretrained network, which is frozen until it is thawed.

    ``train()`` leaves a frozen network in eval mode, so that BatchNorm keeps its running statistics even
    inside a larger module. To fine-tune, thaw it with ``backbone.network.requires_grad_(True)``; from then
    on, ``train()`` and ``eval()`` change its mode as usual. Threads may share one that is not being trained.

    Args:
        network: the network to extract features from; its gradients are disabled.
        rotations: degrees counter-clockwise, one per output of the network; empty for a network that was
            pretrained by another task than RotNet's.
        mean, std: per channel, for pixel values in [0, 1], used to normalise images.
        image_size: H = W in pixels of the images that it was trained on; other sizes also work.
        is_cropped: whether it was trained on random resized crops, so that :meth:`embed` shows it the
            centres of images.
        metadata: further information as strings.

    Attributes:
        network: the `FeatureNetwork`; it takes normalised images.
        layers: names of the feature maps, ``conv1`` and so on.
        rotations, mean, std, image_size, is_cropped, metadata: as given.

    Images are either uint8 [N,H,W,C] with values 0..255, which are normalised, or floating [N,C,H,W], which
    must already be normalised: values that cannot be normalised are refused, and suspicious ones cause a
    warning, see `rotnet_fast.backbone_inputs.check_images`. Images may be on another device than the network;
    results are on the network's device. Gradients are only recorded if the images or an unfrozen network
    require them. The backbone computes in the dtype of its weights, even inside ``torch.autocast``: for
    bfloat16, convert it with ``.bfloat16()``.

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
        is_cropped: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        channels = network.in_channels
        self.network = network.requires_grad_(False)
        self.layers = network.layers
        has_none = isinstance(rotations, (list, tuple)) and not rotations
        count = 0 if has_none else network.num_classes
        self.rotations: tuple[int, ...] = checked_numbers("rotations", rotations, count, as_whole)
        self.mean: tuple[float, ...] = tuple(map(float, checked_numbers("mean", mean, channels, as_real)))
        self.std: tuple[float, ...] = tuple(map(float, checked_numbers("std", std, channels, as_real)))
        self.image_size = checked_count("image_size", image_size)
        self.is_cropped = bool(is_cropped)
        self.metadata = dict(metadata or {})
        self._origin: Pretrained | None = None  # how to build the network again, where that is known
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Change the mode of a thawed network; leave a frozen one in eval mode."""
        is_thawed = any(parameter.requires_grad for parameter in self.network.parameters())
        return super().train(mode and is_thawed)

    @plain_torch()
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the network as it is now, fine-tuned or not, to a folder.

        :func:`rotnet_fast.load_backbone` and every command read it, like an export. Of weights that have
        changed since the pretraining, no test metrics are kept.

        Args:
            folder: created if it is missing; a model in it is replaced.

        Returns:
            The file that was written, ``model.safetensors`` in the folder.

        Raises:
            ArgumentError: nothing says how to build the network: it was made by hand, or has other layers
                than the one that was loaded; or the folder is that of a run, has the name of a file, or
                holds the card of other weights.
            CannotWriteError: the file cannot be written.
        """
        from rotnet_fast.engine.checkpoint import pack_weights

        remedy = "save network.state_dict() with torch.save instead"
        if self._origin is None:
            raise ArgumentError(
                f"this backbone was not loaded by load_backbone, so that nothing says how to build its "
                f"network again; {remedy}"
            )
        place = named(folder, "folder")
        if place.suffix == Path(MODEL_FILE).suffix or place.is_file():
            raise ArgumentError(f"folder is {place}, a file; pass the folder that {MODEL_FILE} is to be in")
        if (place / "checkpoints").is_dir():
            raise ArgumentError(
                f"folder is {place}, a run, whose checkpoint would be loaded instead; choose another folder"
            )
        if is_part_of_run(place):
            raise ArgumentError(f"folder is {place}, the checkpoints of a run; choose another folder")
        state = {
            name: tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
            for name, tensor in self.network.state_dict().items()
        }
        found = replace(self._origin, state=state)
        try:
            found.network()
        except CheckpointError:
            raise ArgumentError(
                f"network has other layers than the {self.metadata['model']} that was loaded, so that it "
                f"could not be built again; {remedy}"
            ) from None
        if found.state_hash() != self.metadata["state_hash"]:
            found = replace(found, metrics={})
        card = place / "README.md"
        said = card.read_text(errors="replace") if card.is_file() else ""
        if "SHA-256 of the weights' values" in said and found.state_hash() not in said:
            raise ArgumentError(
                f"folder is {place}, whose README.md describes other weights; remove that, or choose another "
                f"folder"
            )
        ensure_folder(place)
        content = pack_weights(state, found.metadata(self.metadata["dataset"]))
        write_atomically(place / MODEL_FILE, content)
        return place / MODEL_FILE

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
        """Return feature maps, for the Network in Network after a block's pool; later layers do not run.

        Args:
            images: uint8 [N,H,W,C] or normalised floating [N,C,H,W], see the class.
            layer: one of ``layers``, or a list or tuple of several. None: the network's ``default_layer``,
                which is conv2 for the Network in Network.
            batch_size: images per forward pass, 256 by default.

        Returns:
            fp32 [N,C_layer,H_layer,W_layer], channels_last; for several layers a dictionary of them.

        Raises:
            TypeError: images is not a tensor, or has an unsupported dtype.
            ArgumentError: images has the wrong shape or number of channels, or values that are not
                normalised; or the network has no such layer.
        """
        if isinstance(layer, (list, tuple)):
            return self._features(images, list(layer), batch_size, _as_they_are)
        name = self.network.default_layer if layer is None else layer
        return self._features(images, [name], batch_size, _as_they_are)[name]

    def forward(
        self, images: torch.Tensor, layer: str | None = None, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> torch.Tensor:
        """Return one vector per image: the globally average-pooled features of a layer, fp32 [N,C_layer].

        Arguments and errors are those of :meth:`features`.
        """
        name = self.network.default_layer if layer is None else layer
        return self._features(images, [name], batch_size, _pooled)[name]

    @named_if_missing("Backbone.embed")
    def embed(
        self,
        what: Images,
        layer: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        *,
        layout: Layout | None = None,
    ) -> torch.Tensor:
        """Return one vector per image, of images of any size, from files or from memory.

        Images are resized and cropped to ``image_size`` as those of an evaluation are, see
        `rotnet_fast.data.decode.fit_image`; then the vectors are those of :meth:`forward`, and of ``python -m
        rotnet_fast.embed``. A folder of more than a thousand images is decoded by several processes, so that
        a script needs the ``if __name__ == "__main__":`` guard.

        Args:
            what: a folder (every image in it and its subfolders, sorted by path), a list of paths, a list of
                PIL images, or a uint8 array or tensor [N,H,W,3] or [N,3,H,W].
            layer, batch_size: see :meth:`features`.
            layout: ``NHWC`` or ``NCHW``, for arrays of which either could be true.

        Returns:
            fp32 [N,C_layer], on the network's device.

        Raises:
            TypeError: what is of another kind, mixes kinds, or is not uint8.
            ArgumentError: what is empty, has the wrong shape, or may be NHWC as well as NCHW; the network has
                no such layer, or does not take RGB images.
            DataError: a file or folder is missing, or an image is damaged.
        """
        from rotnet_fast.backbone_images import image_batches  # needs Pillow, which nothing else here does

        name = self.network.default_layer if layer is None else layer
        batch_size = checked_count("batch_size", batch_size)
        self.network.check_layers([name])
        if self.network.in_channels != 3:
            raise ArgumentError(
                f"this network takes images of {counted(self.network.in_channels, 'channel')}, but embed "
                f"makes RGB images; call the backbone itself on uint8 [N,H,W,C]"
            )
        batches = image_batches(what, self.image_size, self.is_cropped, batch_size, layout)
        return torch.cat([self(batch, name, batch_size) for batch in batches])

    def vectors_and_rotations(
        self, images: torch.Tensor, layer: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pooled features, and the probability of each rotation of the images as they are.

        Both come from one forward pass over all images. A network that has not learned rotations gives no
        probabilities: K is 0.

        Args:
            images, layer: see :meth:`features`.

        Returns:
            fp32 [N,C_layer], which equals :meth:`forward`, and fp32 [N,K].

        Raises:
            TypeError, ArgumentError: see :meth:`features`.
        """
        name = self.network.default_layer if layer is None else layer
        self._check(images, 1)
        self.network.check_layers([name])
        if not self.rotations:
            found = self(images, name)
            return found, found.new_empty(len(found), 0)
        vectors: list[torch.Tensor] = []
        caller = threading.get_ident()

        def keep(module: nn.Module, inputs: Any, maps: torch.Tensor) -> None:
            if threading.get_ident() == caller:  # other threads may use the network meanwhile
                vectors.append(_pooled(maps.float()))  # at once, because what follows may work in place

        handle = self.network.feature_module(name).register_forward_hook(keep)
        try:
            with self._as_converted():
                logits = self.network(self._normalised(images.to(self._weight.device)))
        finally:
            handle.remove()
        return vectors[0], logits.float().softmax(dim=1)

    def rotation_logits(self, images: torch.Tensor, batch_size: int = DEFAULT_BATCH_SIZE) -> torch.Tensor:
        """Return the network's predictions for the pretext task.

        Args:
            images: uint8 [N,H,W,C], H = W.
            batch_size: images per forward pass; each gives K views.

        Returns:
            fp32 [N,K,K]: [n,k] are the logits of image n rotated by ``rotations[k]``; a softmax over the last
            dimension gives the probability of each rotation.

        Raises:
            TypeError: images is not uint8.
            ArgumentError: the network has not learned rotations, or its last layer was replaced; or images
                has the wrong shape or number of channels.
            ValueError: the images cannot be rotated.
        """
        if not self.rotations:
            task = self.metadata.get("pretext_task", "another")
            raise ArgumentError(
                f"this network was pretrained by the task {task}, not by rotations; load one of "
                f"--pretext-task {ROTATION}"
            )
        batch_size = self._check(images, batch_size)
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 [N,H,W,C] to be rotated, got {images.dtype}")

        def logits(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            turned = len(self.rotations)
            with self._as_converted():
                found = self.network(self._views(batch, self.rotations))
            if found.shape[1:] != (turned,):
                raise ArgumentError(
                    f"network returns {list(found.shape[1:])} numbers per view, and there are {turned} "
                    "rotations: its last layer was replaced, so that it no longer tells rotations apart"
                )
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
        """Compute results [N,...] for all images in batches, without a second copy of them in memory."""
        device = self._weight.device
        number = images.shape[0]  # not len(), which would become a constant in an exported program
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
        """Return one of the network's weights, all of which have the same device and dtype."""
        return next(self.network.parameters())

    def _as_converted(self) -> torch.autocast:
        """Return a context in which the network computes in its weights' dtype, even under autocast."""
        return torch.autocast(self._weight.device.type, enabled=False)

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        """Return normalised images [B,C,H,W] in the network's dtype, channels_last."""
        if batch.dtype == torch.uint8:
            is_exported = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            return self._in_plain_torch(batch) if is_exported else self._views(batch, (0,))
        return batch.to(self._weight.dtype, memory_format=torch.channels_last)

    def _in_plain_torch(self, batch: torch.Tensor) -> torch.Tensor:
        """Match :meth:`_views` without rotation bit for bit, for programs that run without this package."""
        scale, shift = normalisation_coefficients(self.mean, self.std, batch.device)
        return (batch.double() * scale + shift).float().to(self._weight.dtype).permute(0, 3, 1, 2)

    def _views(self, batch: torch.Tensor, rotations: tuple[int, ...]) -> torch.Tensor:
        """Normalise images uint8 [B,H,W,C] and rotate them to [B*K,C,H,W], without augmentation."""
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
        """Check the arguments of a call and return the batch size as an int."""
        check_images(images, self.mean, self.std)
        if images.is_meta and not self._weight.is_meta:
            raise ArgumentError("images is on meta, where tensors have no values: pass images with values")
        return checked_count("batch_size", batch_size)


def _as_they_are(maps: torch.Tensor) -> torch.Tensor:
    return maps


def _pooled(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(dim=(2, 3))


@plain_torch()
def load_backbone(
    path_or_name: str | os.PathLike[str],
    device: str | torch.device = "auto",
    model: nn.Module | None = None,
) -> Backbone:
    """Load a pretrained network, frozen and ready to extract features.

    Args:
        path_or_name: a folder or file that ``python -m rotnet_fast.export`` wrote; a run folder of ``python
            -m rotnet_fast.pretrain`` (its newest intact checkpoint is used), or a checkpoint or snapshot in
            it; or the name of a model that ships with the package, see `rotnet_fast.pretrained.SHIPPED`. A
            name takes precedence over a path.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda``, ``cuda:N`` or
            ``mps``.
        model: the network that was trained, with any weights, where a program gave it to
            :func:`rotnet_fast.train_rotnet`; it is copied. None for networks that have a name.

    Raises:
        ArgumentError: the device does not exist, the path is empty, or model is unsuitable.
        CheckpointError: the path does not exist, is damaged or was not written by this package; model is
            missing, not needed, or another network than the one that was trained.
    """
    if isinstance(device, nn.Module):
        raise ArgumentError("device is a module; pass it as model=...")
    check_device(str(device))
    where = resolve_device(str(device))
    if model is not None:
        check_module(model)
    return backbone_of(read_pretrained(path_or_name, "path_or_name", model)).to(where)


def backbone_of(pretrained: Pretrained) -> Backbone:
    """Create the backbone of a pretrained network, on the CPU.

    Raises:
        CheckpointError: its description does not match its weights.
    """
    config = pretrained.config
    try:
        backbone = Backbone(
            pretrained.network(),
            rotations=config.rotations if config.pretext_task == ROTATION else (),
            mean=pretrained.mean,
            std=pretrained.std,
            image_size=config.image_size,
            is_cropped=config.is_cropped,
            metadata={
                "model": config.model,
                "pretext_task": config.pretext_task,
                "dataset": pretrained.dataset_name or config.dataset,
                "epochs": str(pretrained.epoch),
                "seed": str(config.seed),
                "state_hash": pretrained.state_hash(),
            },
        )
    except ValueError as error:
        if pretrained.module is not None:
            raise  # it is the module that is unsuitable
        raise undescribed(pretrained.path, error) from error
    backbone._origin = replace(pretrained, state={})
    return backbone
