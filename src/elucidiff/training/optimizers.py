"""What turns gradients into steps: Adam, or Muon, which makes the step of a matrix orthogonal.

Source of Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; of the size of its
steps: Liu et al. 2025, "Muon is scalable for LLM training" (arXiv:2502.16982), section 2.2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig

SHORTEST = 16  # of a matrix: its shorter side; below it is a vector, or maps into or out of a few channels
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of X, (X X^T) X and (X X^T)^2 X
ITERATIONS = 5
AT_ONCE = 2**24  # numbers of matrices of one shape that are worked on together
RMS = 0.2  # of a step over the learning rate, about that of Adam


def optimizer_of(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that a configuration asks for."""
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return Muon(parameters, config.lr, betas=betas, eps=config.adam_eps)
    return torch.optim.Adam(parameters, lr=config.lr, betas=betas, eps=config.adam_eps, foreach=True)


def moments_of(config: TrainConfig, p: Tensor) -> tuple[str, ...]:
    """The names of the tensors like p that the optimiser keeps of it, beside the number of its steps."""
    return ("exp_avg",) if config.optimizer == "muon" and is_matrix(p) else ("exp_avg", "exp_avg_sq")


class Muon(torch.optim.Optimizer):
    """Muon for matrices, Adam for the other parameters, with one learning rate.

    A weight of two or more dimensions is a matrix (first dimension, all others), as filters are, if both its sides have
    16 or more: M <- mu M + (1 - mu) G, step = lr 0.2 sqrt(longer side) orthogonal((1 - mu) G + mu M) (Nesterov's
    momentum). Matrices of one shape are worked on together, in float32. With that factor a step has about the size
    that Adam's has, so that its learning rates serve.

    parameters: trained float tensors. betas, eps: of Adam. momentum: mu.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.momentum = momentum
        everything = [p for group in self.param_groups for p in group["params"]]
        self.matrices = [p for p in everything if is_matrix(p)]
        others = [p for p in everything if not is_matrix(p)]
        self.adam = torch.optim.Adam(others, lr=lr, betas=betas, eps=eps, foreach=True) if others else None
        if self.adam is not None:
            self.adam.state = self.state  # one place for all moments

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients that are there."""
        lr = self.param_groups[0]["lr"]
        if self.adam is not None:
            self.adam.param_groups[0]["lr"] = lr
            self.adam.step()
        for shape, members in self._alike().items():
            size, together = RMS * max(shape) ** 0.5, max(AT_ONCE // math.prod(shape), 1)
            for start in range(0, len(members), together):
                some = members[start : start + together]
                steps = orthogonal(torch.stack([_wide(self._momentum(p, g)) for p, g in some]))
                for (p, _), step in zip(some, steps, strict=True):
                    p.add_(_like(step, p), alpha=-lr * size)

    def _alike(self) -> dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]]:
        """The matrices that have gradients, with these, by (shorter side, longer side)."""
        found: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in self.matrices:
            if p.grad is not None:
                short, long = sorted((p.shape[0], p[0].numel()))
                found[short, long].append((p, p.grad))
        return found

    def _momentum(self, p: nn.Parameter, gradient: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p)}
        state["step"] += 1
        return torch.lerp(gradient, state["exp_avg"].lerp_(gradient, 1 - self.momentum), self.momentum)


def is_matrix(p: Tensor) -> bool:
    """Whether Muon takes it as a matrix: two or more dimensions, and 16 or more on both sides."""
    return p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= SHORTEST


def orthogonal(m: Tensor) -> Tensor:
    """About U V^T of matrices m = U S V^T, (N, rows, columns), with rows <= columns: singular values 0.7 to 1.2.

    Five steps of a polynomial of fifth degree (Newton-Schulz), which brings singular values above a hundredth of the
    norm near 1; lower ones stay lower.
    """
    a, b, c = NEWTON_SCHULZ
    x = m / (torch.linalg.matrix_norm(m, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _wide(t: Tensor) -> Tensor:
    """A tensor as a matrix with rows <= columns."""
    m = t.flatten(1).float()
    return m.mT if m.shape[0] > m.shape[1] else m


def _like(m: Tensor, p: Tensor) -> Tensor:
    """The inverse of `_wide`, with the shape of p."""
    return (m.mT if p.shape[0] > p[0].numel() else m).reshape(p.shape)
