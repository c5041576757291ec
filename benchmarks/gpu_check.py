"""The kernels of a GPU against those of the CPU, bit for bit: python -m benchmarks.gpu_check FILE

Calls are drawn at random. Views are written over memory full of NaN, so that an element that no thread
writes shows. On a GPU, every call is made three times: plainly, in a CUDA graph that is replayed with another
epoch, and on a second stream. With ``--device cpu``, the CPU's kernels are compared with the plain-torch
definition.

Exit codes: 0 all calls agree, 1 some differ, 2 the device cannot be used.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.library import LIBRARIES
from rotnet_fast.ops.reference import rotate_batch_reference, warp_batch_reference
from rotnet_fast.rotations import EIGHT_ROTATIONS, FOUR_ROTATIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Made = tuple[torch.Tensor, torch.Tensor]
"""Views and labels."""


class Call:
    """The arguments of one random call.

    Args:
        rng: where they are drawn from.
    """

    def __init__(self, rng: random.Random) -> None:
        side = rng.choice([32, 32, 16, 64, 224, rng.randint(1, 70)])
        angles = tuple(rng.sample(range(360), 3))
        rotations = rng.choice([FOUR_ROTATIONS, EIGHT_ROTATIONS, (0,), angles])
        channels, stored = rng.randint(1, 4), rng.randint(1, 40)
        batch = rng.randint(0, 6 if side > 100 else 200)
        self.images = torch.randint(0, 256, (stored, side, side, channels), dtype=torch.uint8)
        self.rows = torch.randint(0, stored, (batch,))
        self.ids = torch.randint(0, 2**62, (batch,))
        self.seed, self.epoch = rng.randrange(2**62), rng.randrange(100)
        self.dtype = rng.choice(DTYPES)
        self.shape = (batch * len(rotations), side, side, channels)
        self.settings: dict[str, Any] = {
            "rotations": rotations,
            "pad": rng.randint(0, 6),
            "flip_prob": rng.choice([0.0, 0.5, 1.0]),
            "dtype": self.dtype,
            "mean": (0.5, 0.4, 0.3, 0.2)[:channels],
            "std": (0.2, 0.25, 0.3, 0.22)[:channels],
        }

    def __repr__(self) -> str:
        return f"{tuple(self.images.shape)} {self.shape} {self.settings}"

    def poisoned(self, device: torch.device) -> torch.Tensor:
        """Memory for the views, full of NaN."""
        memory = torch.full(self.shape, float("nan"), dtype=self.dtype, device=device)
        return memory.permute(0, 3, 1, 2)

    def defined(self) -> Made:
        """What the plain-torch definition makes."""
        settings = dict(self.settings)
        rotations = settings.pop("rotations")
        drawn = (self.images, self.rows, self.ids, self.seed, self.epoch)
        if any(angle % 90 for angle in rotations):
            views, labels = warp_batch_reference(*drawn, list(rotations), **settings)
        else:
            views, labels = rotate_batch_reference(*drawn, [angle // 90 for angle in rotations], **settings)
        return views.permute(0, 3, 1, 2), labels

    def expected(self) -> Made:
        """What the CPU makes."""
        return rotate_batch(
            self.images, self.rows, sample_ids=self.ids, seed=self.seed, epoch=self.epoch, **self.settings
        )

    def plain(self, device: torch.device) -> Made:
        """What the device makes."""
        images, rows, ids = (tensor.to(device) for tensor in (self.images, self.rows, self.ids))
        out = self.poisoned(device)
        return rotate_batch(
            images, rows, sample_ids=ids, seed=self.seed, epoch=self.epoch, out=out, **self.settings
        )

    def replayed(self, device: torch.device) -> Made:
        """What a graph makes that was captured in another epoch."""
        images, rows, ids = (tensor.to(device) for tensor in (self.images, self.rows, self.ids))
        key = torch.tensor([self.seed, self.epoch + 1], device=device)
        out = self.poisoned(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = rotate_batch(images, rows, sample_ids=ids, seed=key, out=out, **self.settings)
        key[1] = self.epoch
        out.fill_(float("nan"))
        graph.replay()
        return made

    def on_another_stream(self, device: torch.device) -> Made:
        """What the device makes of images that come late, on a stream of its own."""
        images, rows, ids = (tensor.to(device) for tensor in (self.images, self.rows, self.ids))
        late, out = torch.zeros_like(images), self.poisoned(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000)
            late.copy_(images)
            made = rotate_batch(
                late, rows, sample_ids=ids, seed=self.seed, epoch=self.epoch, out=out, **self.settings
            )
        stream.synchronize()
        return made


def check(calls: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """Try so many calls, or as many as there is time for.

    Returns:
        ``calls`` and ``ways`` that were tried; ``differing``, the first ten that differed, and how many did.
    """
    rng, deadline = random.Random(0), time.monotonic() + seconds
    torch.manual_seed(0)
    ways: dict[str, Callable[[Call, torch.device], Made]] = {"plain": Call.plain}
    if device.type == "cuda":
        ways |= {"graph": Call.replayed, "second stream": Call.on_another_stream}
    tried, differing = 0, []
    while tried < calls and time.monotonic() < deadline:
        call = Call(rng)
        expected = call.expected() if device.type == "cuda" else call.defined()
        tried += 1
        for name, make in ways.items():
            found = make(call, device)
            if not all(torch.equal(one.cpu(), other) for one, other in zip(found, expected, strict=True)):
                differing.append(f"{name}: {call}")
    outside = torch.cat([torch.arange(2), torch.tensor([-1, 7, 2**62])]).to(device)
    if device.type == "cuda":  # the CPU refuses them
        views, _ = rotate_batch(torch.zeros(2, 32, 32, 3, dtype=torch.uint8, device=device), outside)
        if views.isnan().flatten(1).all(1).tolist() != [False] * 8 + [True] * 12:
            differing.append("views of indices that are out of range are not NaN, or others are")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "kernel": LIBRARIES[device.type].detail,
        "calls": tried,
        "ways": list(ways),
        "differing": differing[:10],
        "differing_calls": len(differing),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare a device's kernels with the CPU's, bit for bit.")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=45.0, help="stop after so many, whatever is left")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no CUDA device", file=sys.stderr)
        return 2
    if not LIBRARIES[device.type].loaded:
        print(
            f"error: the {device.type} kernels are not in use: {LIBRARIES[device.type].detail}",
            file=sys.stderr,
        )
        return 2
    found = check(options.calls, device, options.seconds)
    options.output.write_text(json.dumps(found, indent=1))
    for line in found["differing"]:
        print(f"differs: {line}", file=sys.stderr)
    print(
        f"{found['calls']} random calls, each {', '.join(found['ways'])}: {found['differing_calls']} differ"
    )
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
