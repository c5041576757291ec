"""``rotate_batch``: gather, crop, flip, rotate, normalise, cast and label in one step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from numbers import Real

import torch

from rotnet_fast.ops import library as library  # registers the op
from rotnet_fast.ops.limits import MAX_ELEMENTS, MAX_PAD, MAX_SIDE, VIEW_TYPES
from rotnet_fast.rotations import FOUR_ROTATIONS, check_rotations, quarter_turns

CIFAR10_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR10_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)

_NUMBERS = (float, int, Real)  # the last alone would do, at ten times the cost


def rotate_batch(
    images: torch.Tensor,
    indices: torch.Tensor | None = None,
    *,
    rotations: Sequence[int] = FOUR_ROTATIONS,
    sample_ids: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    epoch: int = 0,
    pad: int = 4,
    flip_prob: float = 0.5,
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a training batch of rotated views from stored uint8 images in one fused step.

    Per image, in this order: gather, zero-pad by ``pad`` and crop back to H x W at a random place,
    flip left-right with probability ``flip_prob``, turn by every angle of ``rotations``, normalise,
    cast. All views of one image share its crop and its flip.

    Where every rotation is a multiple of 90 degrees, views are exact permutations of the crop's pixels.
    Where one is not, all views of the call are warped alike, so that neither empty corners nor sharpness
    give a rotation away: view k shows the central square of side W / sqrt(2), turned and enlarged to
    W x W by bilinear interpolation between pixel centres. Grey levels (of 255) then differ from the ideal
    warp by at most 0.13: source positions are rounded to 1/2048 pixel (off by at most 1/4096 per axis)
    and levels to 1/256, which makes every backend give the same bits. Rotations that differ by a multiple
    of 90 degrees remain exact permutations of each other. The square's corners reach the border of the
    crop at 45, 135, 225 and 315 degrees only, so that a black border would give these away: ``pad`` takes
    in the image's mirror image here.

    Args:
        images: uint8 [N,H,W,C], contiguous, on the CPU or a CUDA device; C in 1..4. H must equal W
            unless every turn is a multiple of 180 degrees.
        indices: int64 [B], rows of ``images`` in [0, N); None takes all N in order.
        rotations: degrees counter-clockwise, any non-empty sequence of up to 64 whole numbers (K of
            them), modulo 360.
        sample_ids: int64 [B], the ids that the random draws depend on; None takes ``indices``.
        seed: int64 seed of the draws, or one int64 tensor [2] on the device of ``images`` that
            holds (seed, epoch): read when the kernel runs, so that a captured CUDA graph draws
            fresh numbers at each replay.
        epoch: in [0, 2**32); must stay 0 where ``seed`` is a tensor.
        pad: pixels of black border (mirrored where views are warped) on each side, 0..32767; 0 switches
            the crop off.
        flip_prob: in [0, 1]; 0 switches the flip off.
        mean, std: per channel, for pixel values scaled to [0, 1]; CIFAR-10's by default. Fewer
            channels than values is not allowed: give C of each. Means beyond 1e5 (1e3 where views are
            warped) would not be subtracted exactly and are refused.
        dtype: torch.float32, torch.bfloat16 or torch.float16.
        out: views of an earlier call to overwrite: ``dtype`` [B*K,C,H,W], channels_last, dense, and in
            memory of its own. Reusing it spares the page faults of a fresh allocation, which cost more
            than the work. A refused call has not written to it.

    Returns:
        ``(views, rotation_labels)``: ``dtype`` [B*K,C,H,W] in channels_last memory format,
        image-major (view n*K + k is image n turned by ``rotations[k]``), and int64 [B*K] with
        the position k.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, layout, device or range; more than 2**31 - 1 output elements; ``out``
            that shares memory with an input; a tensor whose storage is too short or not aligned to its
            elements.
        IndexError: an index outside [0, N), for images on the CPU. On a CUDA device, where checking would
            force a synchronisation, every element of such an image's views is NaN.
        RuntimeError: instead of the latter two, from a graph that torch.compile made, which cannot look
            at addresses and indices beforehand.

    Random draws: Philox4x32-10 keyed by ``seed`` with counter (sample id, epoch): a pure function,
    equal on every device, independent of batch size, order and threads.
    Source: protocol of Gidaris et al. (ICLR 2018), crop and flip before rotation, one per image.
    """
    degrees = check_rotations(rotations)
    warped = any(angle % 90 for angle in degrees)
    _check_settings(images, pad, flip_prob, dtype)
    mean, std = _check_normalisation(mean, std, images.shape[3], warped)
    key, seed_number = _split_seed(seed, epoch, images)
    batch = _check_images(images, indices, sample_ids, degrees)
    _, height, width, channels = images.shape
    shape = (batch * len(degrees), height, width, channels)
    if batch * len(degrees) * height * width * channels > MAX_ELEMENTS:
        raise ValueError(
            f"the views would have {batch} x {len(degrees)} x {height} x {width} x {channels} elements; "
            f"at most 2**31 - 1 are supported: pass fewer indices per call"
        )
    if out is None:
        views = torch.empty(shape, dtype=dtype, device=images.device)
    else:
        views = _check_out(out, shape, dtype, images)
    labels = torch.empty(shape[0], dtype=torch.int64, device=images.device)
    source = (images, indices, sample_ids, key, seed_number, epoch)
    settings = (pad, float(flip_prob), mean, std)
    try:
        if warped:
            torch.ops.rotnet_fast.warp_batch_out(views, labels, *source, degrees, *settings)
        else:
            torch.ops.rotnet_fast.rotate_batch_out(views, labels, *source, quarter_turns(degrees), *settings)
    except RuntimeError as error:
        raise _documented(error) from None
    if out is not None and not (torch.compiler.is_compiling() or out.is_inference()):
        # Autograd would not notice, and use the new views for gradients that belong to the old ones.
        torch.autograd.graph.increment_version(out)
    return views.permute(0, 3, 1, 2), labels


def _documented(error: RuntimeError) -> Exception:
    """What the kernels found, as its documented class: on the stable ABI they raise RuntimeError alone."""
    sentence = str(error).split("\n", 1)[0]
    if "outside [0, " in sentence:
        return IndexError(sentence[sentence.index("indices[") :])
    _, is_ours, ours = sentence.partition("rotate_batch: ")
    return ValueError(ours) if is_ours else error


def _check_memory(name: str, tensor: torch.Tensor) -> None:
    """Refuse what has no shape, or whose elements do not lie in memory as they are."""
    kind = "nested" if tensor.is_nested else "" if tensor.layout is torch.strided else str(tensor.layout)
    if not torch.compiler.is_compiling() and tensor.is_neg():
        kind = "negated"
    if kind:
        raise ValueError(
            f"{name} must be a dense tensor in memory, got a {kind} one: make it one before the call"
        )


def _split_seed(
    seed: int | torch.Tensor, epoch: int, images: torch.Tensor
) -> tuple[torch.Tensor | None, int]:
    """Check seed and epoch; return (device tensor or None, seed number)."""
    if isinstance(seed, torch.Tensor):
        _check_memory("seed", seed)
        if seed.dtype != torch.int64:
            raise TypeError(f"seed as a tensor must be int64 and hold (seed, epoch), got {seed.dtype}")
        if seed.shape != (2,):
            raise ValueError(
                f"seed as a tensor must have shape [2] and hold (seed, epoch), got {list(seed.shape)}"
            )
        if seed.device != images.device or not seed.is_contiguous():
            raise ValueError(
                f"seed must be a contiguous tensor on the device of images ({images.device}), "
                f"got one on {seed.device} with strides {seed.stride()}"
            )
        _check_whole("epoch", epoch, 0, 2**32)
        if epoch != 0:
            raise ValueError(f"epoch is {epoch}, but the seed tensor already holds it: leave epoch at 0")
        return seed, 0
    _check_whole("seed", seed, -(2**63), 2**63)
    _check_whole("epoch", epoch, 0, 2**32)
    return None, seed


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not low <= value < high:
        raise ValueError(f"{name} is {value}; it must lie in [{low}, {high})")


def _check_settings(images: torch.Tensor, pad: int, flip_prob: float, dtype: torch.dtype) -> None:
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"images must be a uint8 tensor [N,H,W,C], got {type(images).__name__}")
    _check_memory("images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 with values 0..255, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"images must be [N,H,W,C], got shape {list(images.shape)}")
    channels = images.shape[3]
    if not 1 <= channels <= 4:
        raise ValueError(
            f"images has {channels} channels in its last dimension; 1 to 4 are supported "
            f"(channels come last: [N,H,W,C])"
        )
    if isinstance(pad, bool) or not isinstance(pad, int):
        raise TypeError(f"pad must be a whole number of pixels, got {pad!r}")
    if not 0 <= pad <= MAX_PAD:
        raise ValueError(f"pad is {pad}; it must lie in [0, {MAX_PAD}]")
    if isinstance(flip_prob, bool) or not isinstance(flip_prob, _NUMBERS):
        raise TypeError(f"flip_prob must be a number, got {flip_prob!r}")
    if not 0.0 <= flip_prob <= 1.0:
        raise ValueError(f"flip_prob is {flip_prob}; it must lie in [0, 1]")
    if dtype not in VIEW_TYPES:
        raise TypeError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype}")


def _check_normalisation(
    mean: Sequence[float], std: Sequence[float], channels: int, warped: bool
) -> tuple[list[float], list[float]]:
    # Inside these bounds v * scale + shift is exact in float64, so that every backend rounds the same
    # number to float32 (see normalisation_coefficients).
    limit, where = (1e3, " for rotations that are not all multiples of 90") if warped else (1e5, "")
    means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
    for value in means:
        if not (value == 0 or 1e-8 <= abs(value) <= limit):
            raise ValueError(
                f"mean holds {value}; each value must be 0 or of magnitude in [1e-8, {limit:g}]{where}"
            )
    for value in stds:
        if not 1e-6 <= value <= 1e6:
            raise ValueError(f"std holds {value}; each value must be in [1e-6, 1e6]")
    # Converted last: whole numbers may be larger than any float.
    return [float(value) for value in means], [float(value) for value in stds]


def _per_channel(name: str, values: Sequence[float], channels: int) -> list[float]:
    if isinstance(values, (str, bytes, torch.Tensor)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of one number per channel, got {values!r}")
    found = list(islice(values, channels + 1))
    if len(found) != channels:
        raise ValueError(
            f"{name} needs one value per channel: images has {channels} channels, {name} has "
            f"{len(found) if len(found) < channels else 'more'} values"
        )
    for value in found:
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
            raise TypeError(f"{name} must hold plain numbers, found {value!r}; of a tensor, take .tolist()")
    return found


def _check_images(
    images: torch.Tensor,
    indices: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    degrees: list[int],
) -> int:
    """Check shapes, layouts and devices; return the batch size B."""
    number, height, width, _ = images.shape
    if height < 1 or width < 1:
        raise ValueError(f"images must have at least one row and column, got shape {list(images.shape)}")
    if height > MAX_SIDE or width > MAX_SIDE:
        raise ValueError(f"images are {height} x {width}; at most {MAX_SIDE} rows and columns are supported")
    if height != width and any(angle % 180 for angle in degrees):
        raise ValueError(
            f"images are {height} x {width}, not square: they can only be turned by 0 and 180 degrees; "
            f"crop them to a square or pass rotations=(0, 180)"
        )
    if not images.is_contiguous():
        raise ValueError(
            "images must be contiguous [N,H,W,C]; call images.contiguous() once, before the loop"
        )
    if images.device.type not in ("cpu", "cuda"):
        raise ValueError(f"images must be on the CPU or a CUDA device, got {images.device}")
    batch = number
    for name, tensor in (("indices", indices), ("sample_ids", sample_ids)):
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} must be an int64 tensor, got {type(tensor).__name__}: use torch.tensor(...)"
            )
        _check_memory(name, tensor)
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
        if tensor.dim() != 1 or (name == "sample_ids" and tensor.shape[0] != batch):
            expected = "[B]" if name == "indices" else f"[{batch}], one per image of the batch"
            raise ValueError(f"{name} must have shape {expected}, got {list(tensor.shape)}")
        batch = tensor.shape[0]
        if tensor.device != images.device:
            raise ValueError(f"{name} is on {tensor.device}, images on {images.device}: move one of them")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous; call {name}.contiguous()")
    return batch


def _check_out(
    out: torch.Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype, images: torch.Tensor
) -> torch.Tensor:
    """Check the buffer to overwrite; return it as [B*K,H,W,C]."""
    if not isinstance(out, torch.Tensor) or out.dtype != dtype:
        found = out.dtype if isinstance(out, torch.Tensor) else type(out).__name__
        raise TypeError(f"out must be a tensor of dtype {dtype}, got {found}")
    _check_memory("out", out)
    views, height, width, channels = shape
    if out.shape != (views, channels, height, width):
        raise ValueError(f"out must have shape {[views, channels, height, width]}, got {list(out.shape)}")
    if out.device != images.device:
        raise ValueError(f"out is on {out.device}, images on {images.device}: move one of them")
    if out.requires_grad:
        raise ValueError("out requires grad; pass a buffer that does not (views are data, not parameters)")
    try:
        buffer = out.permute(0, 2, 3, 1)
    except RuntimeError:
        # All else that a permutation asks for is checked above; of other tensors the op looks at the storage.
        raise ValueError(
            "out has less memory than it needs: pass a tensor whose storage was not resized"
        ) from None
    if not buffer.is_contiguous():
        raise ValueError(
            "out must be dense in channels_last memory format; "
            "make it with torch.empty(..., memory_format=torch.channels_last)"
        )
    return buffer
