"""TCP's recurrent context networks, siblings of the masked convolutions (Lorre et al. 2020, Table 3).

Letters: B videos, D features, T segments, h w the feature map. c_t depends on h_1 … h_t only.
"""

import torch
from torch import Tensor, nn


class ConvLSTM(nn.Module):
    """One convolutional LSTM layer without peepholes (Shi et al. 2015, arXiv:1506.04214, Eq. 3)."""

    def __init__(self, dim: int, side: int = 3) -> None:
        super().__init__()
        self.gates = nn.Conv2d(2 * dim, 4 * dim, side, padding=side // 2)

    def forward(self, h_BDThw: Tensor) -> Tensor:
        """(B, D, T, h, w) → contexts of the same size."""
        state = cell = torch.zeros_like(h_BDThw[:, :, 0])
        states = []
        for x_BDhw in h_BDThw.unbind(2):
            entry, forget, out, candidate = self.gates(torch.cat([x_BDhw, state], 1)).chunk(4, 1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
            state = out.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, 2)


class PooledLSTM(nn.Module):
    """An LSTM over the spatial means of the segments: "LSTM" in Table 3."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, h_BDThw: Tensor) -> Tensor:
        """(B, D, T, h, w) → contexts (B, D, T, 1, 1)."""
        states_BTD, _ = self.lstm(h_BDThw.mean((-2, -1)).transpose(1, 2))
        return states_BTD.transpose(1, 2)[..., None, None]
