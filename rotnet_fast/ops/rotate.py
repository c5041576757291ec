"""``rotate_batch`` (gather, crop, flip, rotate, normalise, cast and label in one step) and its draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rotnet_fast.ops import library as library  # registers the op
from rotnet_fast.ops.arguments import (
    check_apart,
    check_dtype,
    check_images,
    check_layout,
    checked_ids,
    checked_normalisation,
    checked_out,
    checked_pad,
    checked_probability,
    checked_seed,
)
from rotnet_fast.ops.limits import MAX_ELEMENTS
from rotnet_fast.paper import CIFAR10_MEAN, CIFAR10_STD
from rotnet_fast.philox import crop_and_flip_draws
from rotnet_fast.rotations import FOUR_ROTATIONS, check_rotations


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

    The steps for each image are, in this order: gather, zero-pad by ``pad`` and crop back to H x W at a
    random position, flip left-right with probability ``flip_prob``, rotate by every angle of ``rotations``,
    normalise, and cast. All views of one image share its crop and its flip.

    If every rotation is a multiple of 90 degrees, views are exact permutations of the crop's pixels.
    Otherwise all views of the call are warped in the same way, so that neither empty corners nor sharpness
    give a rotation away: view k shows the central square of side W / sqrt(2), rotated and enlarged to W x W
    by bilinear interpolation between pixel centres. Its grey levels (of 255) differ from the ideal warp by at
    most 0.13: source positions are rounded to 1/2048 pixel (an error of at most 1/4096 per axis) and levels
    to 1/256, so that every backend returns the same bits. Rotations that differ by a multiple of 90 degrees
    remain exact permutations of each other. The square's corners reach the border of the crop only at 45,
    135, 225 and 315 degrees, so a black border would give these away; warped views are therefore padded by
    mirroring the image.

    Args:
        images: uint8 [N,H,W,C], contiguous, on the CPU or a CUDA device; C in 1..4. H must equal W
            unless every rotation is a multiple of 180 degrees.
        indices: [B], rows of ``images`` in [0, N); None takes all N in order. An int64 tensor on the device
            of ``images`` is fastest; tensors of other integer types on that device, sequences and numpy
            arrays are copied to one.
        rotations: angles in degrees counter-clockwise, modulo 360: a non-empty sequence of up to 64 integers
            (K of them).
        sample_ids: [B], the ids that determine the random draws, of the same types as ``indices``; None uses
            ``indices``.
        seed: seed of the draws, an integer of any size, modulo 2**64; or an int64 tensor [2] on the device of
            ``images`` that holds (seed, epoch). The tensor is read when the kernel runs, so that a captured
            CUDA graph draws fresh numbers at each replay.
        epoch: in [0, 2**32); must be 0 if ``seed`` is a tensor [2].
        pad: pixels of black border (mirrored if views are warped) on each side, 0..32767; 0 disables the
            crop.
        flip_prob: in [0, 1]; 0 disables the flip.
        mean, std: C values each, one per channel, for pixel values scaled to [0, 1]; by default CIFAR-10's.
            Means beyond 1e5 (1e3 if views are warped) would not be subtracted exactly and are refused.
        dtype: torch.float32, torch.bfloat16 or torch.float16.
        out: views of an earlier call to overwrite: ``dtype`` [B*K,C,H,W], channels_last, dense, and not
            sharing memory with an input. Reusing it avoids the page faults of a new allocation, which cost
            more than the op itself. A call that is refused does not write to it.

    Numbers may be Python or numpy scalars, or arrays and tensors with no dimensions; sequences of numbers may
    be arrays and tensors [K] or [C]. Those on a GPU cause a synchronisation. Inside torch.compile and
    torch.export, pass Python numbers and tensors of indices, because the values of other types are not known
    there.

    Returns:
        ``(views, rotation_labels)``: ``dtype`` [B*K,C,H,W] in channels_last memory format, image-major (view
        n*K + k is image n rotated by ``rotations[k]``), and int64 [B*K] with the position k.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, layout, device or range; the views would have more than
            2**31 - 1 elements; ``out`` shares memory with an input; or a tensor's storage is too short or not
            aligned to its elements.
        IndexError: an index is outside [0, N), for images on the CPU. On a CUDA device, where checking would
            force a synchronisation, every element of such an image's views is NaN.
        MemoryError: no memory is left for one image in each thread.
        RuntimeError: the call is under torch.vmap or in an export to ONNX. A graph of torch.compile or
            torch.export also raises it instead of the errors about addresses, indices and the number of
            elements, which it cannot check in advance.

    Random draws use Philox4x32-10 keyed by ``seed`` with counter (sample id, epoch). They are a pure
    function, equal on every device and independent of batch size, order and threads.
    Source: protocol of Gidaris et al. (ICLR 2018), crop and flip before rotation, one per image.
    """
    if not isinstance(images, torch.Tensor) and isinstance(images, torch.fx.Proxy):
        given = {"sample_ids": sample_ids, "seed": seed, "epoch": epoch, "pad": pad, "flip_prob": flip_prob}
        given |= {"rotations": rotations, "mean": mean, "std": std, "dtype": dtype, "out": out}
        traced: Any = images.tracer.create_proxy("call_function", rotate_batch, (images, indices), given)
        return traced  # type: ignore[no-any-return]
    # Asking torch.onnx takes longer, and its exporter by torch.export reports by itself that it lacks the op.
    if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "rotate_batch is not an ONNX op: export what follows it, such as a backbone, which normalises "
            "uint8 images with torch's own ops"
        )
    read: dict[str, Any] = {"rotations": rotations, "indices": indices, "sample_ids": sample_ids}
    read |= {"seed": seed, "mean": mean, "std": std}
    degrees = check_rotations(rotations)
    warped = any(angle % 90 for angle in degrees)
    check_images(images)
    pad, flip_prob = checked_pad(pad), checked_probability(flip_prob)
    check_dtype(dtype)
    means, stds = checked_normalisation(mean, std, images.shape[3], warped)
    key, seed, epoch = checked_seed(seed, epoch, images)
    check_layout(images, degrees)
    batch, height, width, channels = images.shape
    if indices is not None:
        indices = checked_ids("indices", indices, images.device)
        batch = indices.shape[0]
    if sample_ids is not None:
        sample_ids = checked_ids("sample_ids", sample_ids, images.device)
        if sample_ids.shape[0] != batch:
            raise ValueError(
                f"sample_ids must have shape [{batch}], one per image of the batch, got "
                f"{list(sample_ids.shape)}"
            )
    shape = (batch * len(degrees), height, width, channels)
    # In a graph, the size of views is not known yet, so the op itself checks it.
    if not torch.compiler.is_compiling() and math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(
            f"the views would have {batch} x {len(degrees)} x {height} x {width} x {channels} elements; "
            f"at most 2**31 - 1 are supported: pass fewer indices per call"
        )
    if out is None:
        views = torch.empty(shape, dtype=dtype, device=images.device)
    else:
        views = checked_out(out, shape, dtype, images)
        check_apart(out, read)
    labels = torch.empty(shape[0], dtype=torch.int64, device=images.device)
    source = (images, indices, sample_ids, key, seed, epoch)
    settings = (pad, flip_prob, means, stds)
    try:
        if warped:
            torch.ops.rotnet_fast.warp_batch_out(views, labels, *source, degrees, *settings)
        else:
            turns = [angle // 90 for angle in degrees]
            torch.ops.rotnet_fast.rotate_batch_out(views, labels, *source, turns, *settings)
    except (RuntimeError, MemoryError) as error:
        raise _documented(error) from None
    if out is not None and not (torch.compiler.is_compiling() or out.is_inference()):
        # Otherwise autograd would silently use the new views for gradients that belong to the old ones.
        torch.autograd.graph.increment_version(out)
    return views.permute(0, 3, 1, 2), labels


def _documented(error: Exception) -> Exception:
    """Convert a kernel's error to its documented class; the stable ABI only lets them raise RuntimeError."""
    sentence = str(error).split("\n", 1)[0]
    if "outside [0, " in sentence:
        return IndexError(sentence[sentence.index("indices[") :])
    if "did not start" in sentence:  # such as "no kernel image is available", for a GPU not built for
        return RuntimeError(f"{sentence}; python -m rotnet_fast.doctor says what to do")
    if "Batching rule" in sentence:
        return RuntimeError(
            "rotate_batch works on a whole batch and not under torch.vmap: pass all indices [B] at once"
        )
    if "bad_alloc" in sentence:
        return MemoryError(
            "rotate_batch has no memory left for one image in each thread: use fewer threads or smaller "
            "images"
        )
    _, is_ours, ours = sentence.partition("rotate_batch: ")
    return ValueError(ours) if is_ours else error


def augmentation_draws(
    sample_ids: torch.Tensor,
    *,
    seed: int | torch.Tensor = 0,
    epoch: int = 0,
    pad: int = 4,
    flip_prob: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where :func:`rotate_batch` crops each image, and which images it flips.

    Args:
        sample_ids: [B], as in :func:`rotate_batch`; pass its ``indices`` if it gets no sample_ids.
        seed, epoch, pad, flip_prob: as in :func:`rotate_batch`.

    Returns:
        ``(top, left, flip)`` on the device of ``sample_ids`` (the CPU if they are not a tensor): int64 [B]
        and int64 [B] in [0, 2 * pad], the crop's upper left corner in the padded image, and bool [B].

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, layout, device or range.
    """
    device = sample_ids.device if isinstance(sample_ids, torch.Tensor) else torch.device("cpu")
    sample_ids = checked_ids("sample_ids", sample_ids, device)
    pad, flip_prob = checked_pad(pad), checked_probability(flip_prob)
    key, seed, epoch = checked_seed(seed, epoch, sample_ids, "sample_ids")
    if key is not None:
        return crop_and_flip_draws(sample_ids, key[0], key[1], pad, flip_prob)
    return crop_and_flip_draws(sample_ids, seed, epoch, pad, flip_prob)
