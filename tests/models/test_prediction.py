"""The ConvGRU against its equations, location by location."""

import math

import pytest
import torch
from torch import Tensor

from models.dpc import ConvGRU


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_step(gru: ConvGRU, x: list[float], h: list[float]) -> list[float]:
    """u, r, candidate and h' of one location, written out."""

    def affine(gate: torch.nn.Conv2d, values: list[float]) -> list[float]:
        rows, biases = gate.weight[:, :, 0, 0].tolist(), gate.bias.tolist()
        return [
            b + sum(w * v for w, v in zip(row, values, strict=True))
            for row, b in zip(rows, biases, strict=True)
        ]

    update = [sigmoid(a) for a in affine(gru.update_gate, x + h)]
    reset = [sigmoid(a) for a in affine(gru.reset_gate, x + h)]
    candidate = [
        math.tanh(a) for a in affine(gru.out_gate, x + [r * v for r, v in zip(reset, h, strict=True)])
    ]
    return [(1 - u) * v + u * c for u, v, c in zip(update, h, candidate, strict=True)]


@torch.no_grad()
def test_states_are_the_equations() -> None:
    torch.manual_seed(0)
    gru = ConvGRU(3, 4).eval()
    for parameter in gru.parameters():
        parameter.normal_()
    x_BNDhw = torch.randn(2, 3, 3, 2, 2)
    states = gru(x_BNDhw)
    assert states.shape == (2, 3, 4, 2, 2)
    for b in range(2):
        for i in range(2):
            for j in range(2):
                h = [0.0] * 4
                for n in range(3):
                    h = slow_step(gru, x_BNDhw[b, n, :, i, j].tolist(), h)
                    assert states[b, n, :, i, j].tolist() == pytest.approx(h, abs=1e-5)


@torch.no_grad()
def test_a_state_never_sees_later_inputs() -> None:
    torch.manual_seed(0)
    gru, x = ConvGRU(3, 4).eval(), torch.randn(2, 5, 3, 2, 2)
    for t in range(1, 5):
        changed = x.clone()
        changed[:, t:] = torch.randn_like(changed[:, t:])
        assert torch.equal(gru(changed)[:, :t], gru(x)[:, :t])
        assert not torch.allclose(gru(changed)[:, t], gru(x)[:, t])


@torch.no_grad()
def test_the_dropped_state_recurs() -> None:
    """With everything dropped, each step begins from zeros."""
    torch.manual_seed(0)
    gru = ConvGRU(3, 4, dropout=1.0).train()
    x = torch.randn(1, 2, 3, 1, 1)
    assert not gru(x).any()
    some = ConvGRU(3, 512, dropout=0.1).train()(torch.randn(1, 1, 3, 4, 4))
    assert float((some == 0).float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("gain", [1.0, 0.1])
def test_weights_begin_orthogonal_and_biases_zero(gain: float) -> None:
    gru = ConvGRU(6, 6, gain=gain)
    for gate in (gru.update_gate, gru.reset_gate, gru.out_gate):
        W: Tensor = gate.weight[:, :, 0, 0]
        torch.testing.assert_close(W @ W.T, gain**2 * torch.eye(6), rtol=1e-4, atol=1e-5)
        assert not gate.bias.any()
