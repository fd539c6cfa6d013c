"""What DPC and MemDPC predict with: a convolutional GRU, g (Han et al. 2019, section 3.4), and a memory (2020, section 3.1).

Letters: B videos, N steps, D features, h w the feature map.
"""

import torch
from torch import Tensor, nn


def init_orthogonal(module: nn.Module, gain: float) -> None:
    """Orthogonal weights and zero biases, as in the authors' code (gain 1 in DPC, 0.1 in MemDPC)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.orthogonal_(parameter, gain)


class ConvGRU(nn.Module):
    """One layer whose weights all locations share; a state depends on the states and inputs before it only.

    h' = (1 − u)·h + u·candidate; dropout on h' after each step, and the dropped state recurs (the paper: "when
    computing hidden state in each time step").
    """

    def __init__(self, inputs: int, hidden: int, *, dropout: float = 0.1, gain: float = 1.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.reset_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.update_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.out_gate = nn.Conv2d(inputs + hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)
        init_orthogonal(self, gain)

    def step(self, x_BDhw: Tensor, state_BDhw: Tensor) -> Tensor:
        """One input and the state before it → the state after it."""
        both = torch.cat([x_BDhw, state_BDhw], 1)
        update, reset = self.update_gate(both).sigmoid(), self.reset_gate(both).sigmoid()
        candidate = self.out_gate(torch.cat([x_BDhw, reset * state_BDhw], 1)).tanh()
        return self.dropout((1 - update) * state_BDhw + update * candidate)

    def forward(self, x_BNDhw: Tensor) -> Tensor:
        """Inputs (B, N, D, h, w) → the state after each, (B, N, hidden, h, w), from a state of zeros."""
        B, _N, _D, h, w = x_BNDhw.shape
        state = x_BNDhw.new_zeros(B, self.hidden, h, w)
        states = []
        for x_BDhw in x_BNDhw.unbind(1):
            state = self.step(x_BDhw, state)
            states.append(state)
        return torch.stack(states, 1)


class CompressiveMemory(nn.Module):
    """Of MemDPC (section 3.1, Eq. 3 and 4). slots: (k, D), drawn from N(0, 1) and learned; a prediction is a convex combination of them."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(size, dim))

    def forward(self, logits_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """φ(c) (B, k, h, w) → ẑ = pM (B, D, h, w), and the log-probabilities log p (B, k, h, w) over the slots."""
        log_p_BKhw = logits_BKhw.log_softmax(1)
        z_BDhw = torch.einsum("bkhw,kd->bdhw", log_p_BKhw.exp(), self.slots)
        return z_BDhw, log_p_BKhw
