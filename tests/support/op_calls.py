"""Calls of ``rotate_batch``, right and wrong.

`calls` draws them: most arguments as usual, up to two of them odd. `check` makes a call and demands that it
is refused for one of the rules that it breaks (see `op_rules`), having written nothing, or else equals the
definition.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import odd_tensors
import torch
from hypothesis import strategies as st
from odd_tensors import ODDITIES, describe, is_plain, is_stored, placed, shifts, side_by_side, stored_bytes
from op_rules import MOST_ELEMENTS, VIEW_TYPES, Violation, is_warped, plain, views_shape, violations
from torch.utils._python_dispatch import TorchDispatchMode

from rotnet_fast.ops import rotate_batch
from rotnet_fast.ops.reference import rotate_batch_reference, warp_batch_reference

INT64 = st.integers(-(2**63), 2**63 - 1)
WRONG_TYPES = (
    None,
    True,
    1.0,
    "1",
    1j,
    [1],
    np.bool_(True),
    np.float32(1),
    torch.tensor(1.0),
    torch.tensor(True),
)
WHOLE_NUMBERS = (np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int16))


class Call:
    """Arguments of ``rotate_batch`` by name. Shown without their values, which may lie nowhere."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def __repr__(self) -> str:
        return "\n".join(f"{name}={describe(value)}" for name, value in self.arguments.items())


ODD = ("images", "indices", "sample_ids", "seed", "epoch", "pad", "flip_prob", "mean", "std")
ODD += ("rotations", "dtype", "out", "out over an input", "number of views")


@st.composite
def calls(draw: st.DrawFn) -> Call:
    odd = set(draw(st.lists(st.sampled_from(ODD), max_size=2)) if draw(st.integers(0, 9)) < 7 else [])

    def either(name: str, usual: st.SearchStrategy[Any], strange: Sequence[Any]) -> Any:
        return draw(st.sampled_from(strange)) if name in odd else draw(usual)

    def oddity(name: str, tensor: torch.Tensor) -> Any:
        return ODDITIES[draw(st.sampled_from(list(ODDITIES)))](tensor) if name in odd else tensor

    quarter = st.sampled_from([0, 90, 180, 270, -90, 450])
    angle = st.one_of(quarter, st.sampled_from([45, 135, 1, 89, 315]), st.integers(-400, 400))
    rotations = either(
        "rotations", st.lists(draw(st.sampled_from([quarter, angle])), min_size=1, max_size=5), ODD_ROTATIONS
    )
    height = draw(st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33])))
    width = draw(st.integers(1, 33)) if draw(st.integers(0, 5)) == 0 else height
    channels, number = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    if "number of views" in odd:
        height, width, channels, number = 64, 64, 4, 1
    images = some_images(number, height, width, channels, draw(st.integers(0, 255)))
    images = (
        draw(st.sampled_from(ODD_IMAGES))
        if "images" in odd and draw(st.booleans())
        else oddity("images", images)
    )
    if isinstance(images, torch.Tensor) and is_plain(images) and images.dim() == 4:
        channels = images.shape[3]

    indices = None
    if "indices" in odd and draw(st.booleans()):
        rows = st.one_of(st.integers(-1, number), st.sampled_from(FAR_ROWS), st.just(number - 2**32))
        indices = ids(draw(st.lists(rows, min_size=1, max_size=4)))
    elif "indices" in odd or draw(st.booleans()):
        inside = st.integers(0, max(0, number - 1))
        indices = oddity("indices", ids(draw(st.lists(inside, max_size=4 if number else 0))))
    if "number of views" in odd:
        known = len(rotations) if isinstance(rotations, (tuple, list)) else 1
        indices = torch.zeros(MOST_ELEMENTS // (64 * 64 * 4 * max(1, known)) + 1, dtype=torch.int64)
    batch = len(indices) if isinstance(indices, torch.Tensor) and indices.dim() else number
    sample_ids = None
    if batch < 9 and (draw(st.booleans()) or "sample_ids" in odd):
        sample_ids = oddity("sample_ids", ids(draw(st.lists(INT64, min_size=batch, max_size=batch))))
        if "sample_ids" in odd and draw(st.integers(0, 2)) == 0:
            made = [draw(st.integers(0, 99)) for _ in range(batch)]
            sample_ids = draw(st.sampled_from(OTHER_IDS))(made)
    seed = either("seed", INT64, (*FAR_SEEDS, *WHOLE_NUMBERS, *WRONG_TYPES))
    by_tensor = draw(st.integers(0, 3)) == 0
    if by_tensor:
        seed = oddity("seed", ids([draw(INT64), draw(INT64)]))
    epochs = st.just(0) if by_tensor else st.integers(0, 2**32 - 1)
    means = st.one_of(st.floats(-1e3, 1e3).filter(is_mean), st.sampled_from([0, 0.5, -1000.0, 1e-8]))
    stds = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.25, 1, 1e-6, 1e6]))
    arguments = {
        "images": images,
        "indices": indices,
        "rotations": rotations,
        "sample_ids": sample_ids,
        "seed": seed,
        "epoch": either("epoch", epochs, (-1, 2**32, 2**32 - 1, 2**70, 0.0, 0, *WHOLE_NUMBERS, *WRONG_TYPES)),
        "pad": either(
            "pad",
            st.sampled_from([0, 1, 4, 40]),
            (-1, 32767, 32768, 2**62, 10**30, *WHOLE_NUMBERS, *WRONG_TYPES),
        ),
        "flip_prob": either("flip_prob", st.one_of(st.just(0.5), st.floats(0, 1)), ODD_PROBABILITIES),
        "mean": per_channel(draw, "mean" in odd, means, channels, ODD_MEANS),
        "std": per_channel(draw, "std" in odd, stds, channels, ODD_STDS),
        "dtype": either("dtype", st.sampled_from(VIEW_TYPES), (torch.float64, torch.uint8, "float32", None)),
    }
    call = Call(arguments)
    if draw(st.booleans()) or odd & {"out", "out over an input"}:
        arguments["out"] = draw_out(draw, arguments, odd)
    return call


def per_channel(
    draw: st.DrawFn, is_odd: bool, usual: st.SearchStrategy[Any], channels: int, strange: Sequence[Any]
) -> Any:
    """Values of mean or std: an odd one among them, or something else altogether."""
    values: list[Any] = draw(st.lists(usual, min_size=channels, max_size=channels))
    if not is_odd:
        return values
    other = draw(
        st.sampled_from(
            [
                *(None, *values[:1], values[:-1], [*values, 1], range(2**64), "1"),
                *(torch.ones(channels), np.ones(channels, np.float32), torch.ones(channels, 1, 1)),
                *(torch.ones(channels, device="meta"), np.array(["1"] * channels)),
            ]
        )
    )
    if not values or draw(st.booleans()):
        return other
    values[draw(st.integers(0, channels - 1))] = draw(st.sampled_from(strange))
    return tuple(values)


def some_images(number: int, height: int, width: int, channels: int, seed: int) -> torch.Tensor:
    values = torch.arange(number * height * width * channels) * 40503 + seed * 2654435761
    return (values >> 7).to(torch.uint8).view(number, height, width, channels)


def ids(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def is_mean(value: float) -> bool:
    return value == 0 or abs(value) >= 1e-8


FAR_SEEDS = (
    2**63,
    -(2**63) - 1,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    2**64,
    10**40,
    -(10**40),
    np.uint64(2**64 - 1),
)
FAR_ROWS = (-(2**63), 2**63 - 1, 2**62, -(2**62), 2**32, 2**31)
OTHER_IDS = (
    *(tuple, lambda made: np.array(made, np.uint16)[::-1], lambda made: np.array(made, ">i4")),
    *(lambda made: np.array(made, float), lambda made: np.array([made]), lambda made: [[i] for i in made]),
    *(lambda made: torch.tensor(made, dtype=torch.uint8), set, lambda made: range(len(made))),
)
ODD_IMAGES = (
    *(
        torch.zeros(*shape, dtype=torch.uint8)
        for shape in ((2, 0, 3, 3), (2, 3, 0, 3), (2, 3, 3, 0), (1, 3, 3, 5))
    ),
    *(
        torch.empty(0, *shape, dtype=torch.uint8)
        for shape in ((3000, 3000, 1), (32767, 1, 1), (32768, 1, 1), (1, 2**32, 2))
    ),
    torch.zeros(3, 2, 4, 4, dtype=torch.uint8).permute(0, 2, 3, 1),
    np.zeros((1, 2, 2, 1), dtype=np.uint8),
    None,
)
ODD_ROTATIONS = (
    *((), [], (0,) * 64, (0,) * 65, (45,) * 64, range(0, 360, 90), range(64), range(2**62), range(2**64)),
    *(
        (10**30, -(10**30)),
        (True,),
        (0, 45.0),
        ("0",),
        (None,),
        (np.int64(90),),
        "90",
        b"Z",
        90,
        None,
        {0, 90},
    ),
    *(np.array([0, 90]), torch.tensor([0, 90]), (0, 180), (0, 360, 45)),
)
ODD_PROBABILITIES = (
    *(
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        -5e-324,
        5e-324,
        math.nextafter(1, 2),
        math.nextafter(1, 0),
        2,
        0,
        1,
    ),
    *(
        10**400,
        Fraction(1, 3),
        np.float32(0.1),
        Decimal("0.5"),
        torch.tensor(0.5),
        True,
        "0.5",
        None,
        0.5j,
        [0.5],
    ),
)
ODD_NUMBERS = (math.nan, math.inf, -math.inf, 10**400, -(10**400), "0.5", None, True, 1j, torch.tensor(0.5))
ODD_MEANS = (*ODD_NUMBERS, 9e-9, 1e-8, 1e5, -1e5, 100001.0, 1001, -0.0, Fraction(1, 3), np.float32(0.1))
ODD_STDS = (*ODD_NUMBERS, 0, -1.0, 9e-7, 1e-6, 1e6, 1000001, Fraction(1, 3), np.float32(0.1), Decimal(1))


def draw_out(draw: st.DrawFn, arguments: dict[str, Any], odd: set[str]) -> Any:
    """A buffer [B*K,C,H,W] that fits, in the middle of other memory; or not, where `odd` says so."""
    shape, dtype = (4, 2, 2, 1), arguments["dtype"]
    if not violations(arguments):
        shape = views_shape(arguments)
    if dtype not in VIEW_TYPES:
        dtype = torch.float32
    if math.prod(shape) > 10**6:
        shape = (4, 2, 2, 1)
    buffer = torch.full(shape, 7.0, dtype=dtype)
    if "out over an input" in odd:
        target = draw(st.sampled_from(["images", "indices", "sample_ids", "seed"]))
        value = arguments[target]
        if (
            isinstance(value, torch.Tensor)
            and value.dim() > 0
            and odd_tensors.has_memory(value)
            and is_stored(value)
            and value.is_contiguous()
        ):
            shift = draw(shifts(buffer, value))
            buffer, arguments[target] = side_by_side(buffer, value, shift)
    elif "out" in odd:
        kind = draw(
            st.sampled_from([*ODDITIES, "with gradient", "of a graph", "channels first", "of inference"])
        )
        if kind in ("without memory", "one byte short"):
            views = buffer.permute(0, 3, 1, 2)
            buffer.untyped_storage().resize_(0 if kind == "without memory" else max(0, buffer.nbytes - 1))
            return views
        if kind in ODDITIES:
            made = ODDITIES[kind](buffer)
            keeps_rank = isinstance(made, torch.Tensor) and is_plain(made) and made.dim() == 4
            return made.permute(0, 3, 1, 2) if keeps_rank else made
        if kind == "channels first":
            return buffer.permute(0, 3, 1, 2).contiguous()
        if kind == "of inference":
            with torch.inference_mode():
                return buffer.clone().permute(0, 3, 1, 2)
        buffer.requires_grad_()
        buffer = buffer * 2 if kind == "of a graph" else buffer
    else:
        buffer = placed(buffer)
    return buffer.permute(0, 3, 1, 2)


class Allocations(TorchDispatchMode):
    """Elements of the largest tensor that is made inside."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        made = function(*arguments, **(settings or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.numel())
        return made


def expected(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a call without violations must return: views [B*K,C,H,W] and labels."""
    arguments = plain(arguments)
    shape, rotations = views_shape(arguments), arguments["rotations"]
    if shape[0] == 0:  # the definition of a warp would work through the pixels of a view all the same
        return torch.empty(shape, dtype=arguments["dtype"]).permute(0, 3, 1, 2), ids([])
    seed, epoch = arguments["seed"], arguments["epoch"]
    warped = is_warped(rotations)
    views, labels = (warp_batch_reference if warped else rotate_batch_reference)(
        arguments["images"],
        arguments["indices"],
        arguments["sample_ids"],
        *((seed[0], seed[1]) if isinstance(seed, torch.Tensor) else (seed, epoch)),
        [angle % 360 if warped else angle % 360 // 90 for angle in rotations],
        arguments["pad"],
        arguments["flip_prob"],
        arguments["mean"],
        arguments["std"],
        arguments["dtype"],
    )
    return views.permute(0, 3, 1, 2), labels


def check(call: Call, tally: Counter[str], reasons: Counter[Violation]) -> None:
    """Make a call, demand what must become of it, and count it, and the rules that it broke."""
    arguments = call.arguments
    broken = violations(arguments)
    before = {name: stored_bytes(value) for name, value in arguments.items()}
    if not broken:
        tally["valid"] += 1
        wanted = expected(arguments)
        found = rotate_batch(**arguments)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)
        assert found[0].permute(0, 2, 3, 1).is_contiguous()
        out = arguments.get("out")
        if out is not None:
            assert found[0].data_ptr() == out.data_ptr()
            with torch.inference_mode():  # where any tensor may be written to
                out.fill_(7.0)  # as it was; so must the memory around it be
    else:
        tally["invalid"] += 1
        error, allocated = refusal(arguments)
        described = f"{type(error).__name__}: {error}"
        assert any(type(error) is v.error and re.search(rf"\b{v.name}\b", str(error)) for v in broken), (
            f"{described}\nis none of {broken}"
        )
        assert allocated < MOST_ELEMENTS, "views were allocated before they were refused"
        reasons.update(broken)
    for name, value in arguments.items():
        after = stored_bytes(value)
        assert after is None or torch.equal(after, before[name]), f"memory of {name} was written to"


def refusal(arguments: dict[str, Any]) -> tuple[Exception, int]:
    """The error that a call raises, and the most elements that it allocated at once."""
    allocations = Allocations()
    try:
        if arguments["indices"] is not None and getattr(arguments["indices"], "is_nested", False):
            rotate_batch(**arguments)
        else:
            with allocations:
                rotate_batch(**arguments)
    except Exception as error:
        return error, allocations.largest
    raise AssertionError("the call was not refused")
