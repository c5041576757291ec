"""Muon: steepest descent for filters under the spectral norm of their matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, overload

import torch

MOMENTUM = 0.95
"""Momentum of filters. Source: the default of Keller Jordan's Muon."""

_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration. It takes singular values to about 1 (0.7 to 1.2) rather than
to exactly 1, and therefore needs few steps even for small ones."""


class Muon(torch.optim.SGD):
    """SGD, except for groups with ``is_orthogonalised``, which follow Muon.

    The momentum of a filter [C_out,C_in,k,k], taken as a matrix [C_out,C_in*k*k], is replaced by a matrix
    with the same singular vectors and all singular values near 1, which moves every direction of the filter
    by about the same amount. It takes the gradient's place in a step of plain SGD, so that weight decay and
    learning rate are SGD's. Matrices of the same shape are processed together.

    Everything stays on the device, nothing waits, and momentum and options are in ``state_dict``, as in SGD:
    steps can be captured in a CUDA graph, and a run can be resumed exactly.

    Args:
        groups: see SGD; ``is_orthogonalised`` defaults to False. Parameters of a group that sets it have two
            or more dimensions.
        momentum, nesterov, weight_decay: see SGD; the first two do not apply to orthogonalised groups, which
            use Nesterov momentum with ``MOMENTUM``.

    Attributes:
        found_inf: fp32 [], 1 if the next step must be skipped; None means 0.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/. torch.optim.Muon accepts only matrices.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        plain = {"momentum": 0.0, "nesterov": False}
        super().__init__(
            [
                {"is_orthogonalised": False, **group, **(plain if group.get("is_orthogonalised") else {})}
                for group in groups
            ],
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            fused=True,
        )
        for group in self.param_groups:
            if group["is_orthogonalised"]:
                for parameter in group["params"]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        self.found_inf: torch.Tensor | None = None
        # torch's fused SGD divides gradients by the loss scale itself; here they are needed before that.
        self._step_supports_amp_scaling = False

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters; the gradients of orthogonalised groups are overwritten."""
        loss = None
        if closure is not None:  # it makes the gradients
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["is_orthogonalised"]:
                self._orthogonalise_gradients(group["params"])
        super().step()
        return loss

    @torch.no_grad()
    def _orthogonalise_gradients(self, parameters: list[torch.Tensor]) -> None:
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        if not trained:
            return
        places = [parameter.grad for parameter in trained if parameter.grad is not None]
        momenta = [self.state[parameter]["momentum"] for parameter in trained]
        gradients = places
        if self.found_inf is not None:
            # In a skipped step, the momentum is moved towards itself, which leaves it unchanged.
            pairs = zip(momenta, places, strict=True)
            gradients = [torch.where(self.found_inf.bool(), momentum, place) for momentum, place in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's momentum
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, gradient in enumerate(gradients):
            by_shape[len(gradient), gradient[0].numel()].append(number)
        for (rows, columns), numbers in by_shape.items():
            matrices = orthogonalised(torch.stack([ahead[number].flatten(1) for number in numbers]))
            # A tall matrix has as many singular values as columns, which are shared by more rows.
            matrices *= max(1.0, rows / columns) ** 0.5
            for number, matrix in zip(numbers, matrices, strict=True):
                places[number].copy_(matrix.view_as(places[number]))


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of matrices close to 1 by Newton-Schulz iterations.

    Args:
        matrices: fp32 [N,rows,columns].

    Returns:
        fp32 [N,rows,columns] with the same singular vectors, computed in bf16 on a GPU (where it is several
        times faster, and accurate enough) and in fp32 on a CPU (which may have to emulate bf16).
    """
    a, b, c = _COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)  # no singular value is above 1
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x  # the products are of the shorter side's size
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(_STEPS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    result: torch.Tensor = (x.mT if is_tall else x).float()
    return result
