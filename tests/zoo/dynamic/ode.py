"""An adaptive solver of ordinary differential equations around a small network (a neural ODE).

Chen et al., arXiv:1806.07366; github.com/rtqichen/torchdiffeq, ``_impl/rk_common.py`` (``_before_integrate``,
``_advance``, ``_adaptive_step``, ``_runge_kutta_step``) and ``_impl/misc.py`` (``_select_initial_step``,
``_optimal_step_size``) with the tableau of ``_impl/dopri5.py``. As there: times are in double, steps go on
until they pass the time asked for, rejected steps are tried again shorter, states are checked to be finite,
and the answer is interpolated (here by the cubic through both ends and slopes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, Draw, DynamicNetwork, Form

Result = tuple[Tensor, int, int]

ALPHA = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
BETA = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (
    35 / 384 - 1951 / 21600,
    0,
    500 / 1113 - 22642 / 50085,
    125 / 192 - 451 / 720,
    -2187 / 6784 - -12231 / 42400,
    11 / 84 - 649 / 6300,
    -1.0 / 60.0,
)


def rms_norm(tensor: Tensor) -> Tensor:
    return tensor.pow(2).mean().sqrt()


class Field(nn.Module):
    """The derivative: a network of the state and the time; what is at rest stays at rest."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(y))) * (1 + torch.cos(t))


class NeuralODE(nn.Module):
    """The state at ``end``, from one at time 0; and how many steps were accepted and rejected."""

    def __init__(self, field: Field, end: float, rtol: float, atol: float) -> None:
        super().__init__()
        self.field = field
        self.end, self.rtol, self.atol = end, rtol, atol
        self.safety, self.ifactor, self.dfactor, self.order = 0.9, 10.0, 0.2, 5

    def select_initial_step(self, t0: Tensor, y0: Tensor, f0: Tensor) -> Tensor:
        scale = self.atol + torch.abs(y0) * self.rtol
        d0 = rms_norm(y0 / scale)
        d1 = rms_norm(f0 / scale)
        if d0 < 1e-5 or d1 < 1e-5:
            h0 = torch.tensor(1e-6, dtype=y0.dtype, device=y0.device)
        else:
            h0 = 0.01 * d0 / d1
        y1 = y0 + h0 * f0
        f1 = self.field(t0.type_as(y0) + h0, y1)
        d2 = rms_norm((f1 - f0) / scale) / h0
        if d1 <= 1e-15 and d2 <= 1e-15:
            h1 = torch.max(torch.tensor(1e-6, dtype=y0.dtype, device=y0.device), h0 * 1e-3)
        else:
            h1 = (0.01 / max(d1, d2)) ** (1.0 / float(self.order + 1))
        return torch.min(100 * h0, h1).to(t0.dtype)

    def runge_kutta_step(
        self, y0: Tensor, f0: Tensor, t0: Tensor, dt: Tensor, t1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        t0, dt, t1 = t0.type_as(y0), dt.type_as(y0), t1.type_as(y0)
        k = [f0]
        for alpha, beta in zip(ALPHA, BETA, strict=True):
            ti = t1 if alpha == 1.0 else t0 + alpha * dt
            yi = y0 + sum(b * dt * ki for b, ki in zip(beta, k, strict=True))
            k.append(self.field(ti, yi))
        error = sum(e * dt * ki for e, ki in zip(ERROR, k, strict=True))
        return yi, k[-1], error

    def optimal_step_size(self, last_step: Tensor, error_ratio: Tensor) -> Tensor:
        if error_ratio == 0:
            return last_step * self.ifactor
        dfactor = self.dfactor
        if error_ratio < 1:
            dfactor = 1.0
        error_ratio = error_ratio.type_as(last_step)
        factor = (self.safety / error_ratio ** (1 / self.order)).clamp(min=dfactor, max=self.ifactor)
        return last_step * factor

    def forward(self, y0: Tensor) -> Result:
        next_t = torch.tensor(self.end, dtype=torch.float64)
        t0 = t1 = torch.tensor(0.0, dtype=torch.float64)
        f0 = f1 = self.field(t0.type_as(y0), y0)
        y1 = y0
        dt = self.select_initial_step(t0, y0, f0)
        accepted = 0
        rejected = 0
        while next_t > t1:
            assert t1 + dt > t1, f"underflow in dt {dt.item()}"
            assert torch.isfinite(y1).all(), f"non-finite values in state `y`: {y1}"
            y, f, y_error = self.runge_kutta_step(y1, f1, t1, dt, t1 + dt)
            tolerance = self.atol + self.rtol * torch.max(y1.abs(), y.abs())
            error_ratio = rms_norm(y_error / tolerance)
            accept_step = error_ratio <= 1
            if accept_step:
                y0, f0, t0 = y1, f1, t1
                y1, f1, t1 = y, f, t1 + dt
                accepted += 1
            else:
                rejected += 1
            dt = self.optimal_step_size(dt, error_ratio)
        h = (t1 - t0).type_as(y0)
        s = ((next_t - t0) / (t1 - t0)).type_as(y0)
        answer = (1 + 2 * s) * (1 - s) ** 2 * y0 + s**2 * (3 - 2 * s) * y1
        return answer + h * s * (1 - s) * ((1 - s) * f0 - s * f1), accepted, rejected


def _steps(result: Result) -> Decisions:
    return int(result[1]), int(result[2])


def _state(*shape: int) -> Draw:
    """States of very different size, one in ten at rest."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        scale = torch.relu(3 * torch.rand((), generator=generator) - 0.3)
        return (scale * torch.randn(shape, generator=generator),)

    return draw


NETWORKS = (
    DynamicNetwork(
        "neural_ode",
        "Dormand-Prince over a field of 64 inside, y [1, 64]",
        Form(
            # A step's size follows an error that is a small difference of large terms: where it is rounding,
            # eager's own results in f32 are off by up to 6e-4. These states are not among those.
            lambda: NeuralODE(Field(4, 8), 3.0, 1e-3, 1e-4),
            _state(2, 4),
            {(8, 0): 3, (4, 0): 34, (5, 1): 153, (6, 1): 91, (4, 4): 27},
        ),
        Form(
            lambda: NeuralODE(Field(64, 256), 3.0, 1e-5, 1e-6),
            _state(1, 64),
            {(8, 0): 3, (13, 0): 1, (13, 1): 32, (17, 0): 16},
            {"field.inner.weight": 3.0},
        ),
        _steps,
        one_way=("if d0 < 1e-5 or d1 < 1e-5:", "if d1 <= 1e-15 and d2 <= 1e-15:"),
    ),
)
