"""The compressive memory of MemDPC (Han et al. 2020, section 3.1, Eq. 3 and 4)."""

import torch
from torch import Tensor, nn


class CompressiveMemory(nn.Module):
    """slots: (k, D), drawn from N(0, 1) and learned; a prediction is a convex combination of them."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(size, dim))

    def forward(self, logits_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        """φ(c) (B, k, h, w) → ẑ = pM (B, D, h, w), and the log-probabilities log p (B, k, h, w) over the slots."""
        log_p_BKhw = logits_BKhw.log_softmax(1)
        z_BDhw = torch.einsum("bkhw,kd->bdhw", log_p_BKhw.exp(), self.slots)
        return z_BDhw, log_p_BKhw
