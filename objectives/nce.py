"""Contrastive arithmetic that the objectives share.

Letters: A antecedent videos, B consequent videos; N locations of a video; D features.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All ranks' tensors, concatenated in rank order; each rank's gradient is the sum over all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        ctx.rows = x.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """(B, …) of each rank → (world·B, …) of all, in rank order, with gradient; x itself in a single process.

    With DDP's mean over ranks, the gradient is that of one process whose loss is the mean over all samples.
    """
    return _Gather.apply(x.contiguous()) if dist.is_initialized() and dist.get_world_size() > 1 else x


def rank_offset(rows: int) -> int:
    """Where this rank's rows begin in what `gather` returns."""
    return dist.get_rank() * rows if dist.is_initialized() else 0


def scores(antecedents_AND: Tensor, consequents_BND: Tensor, *, scale: bool) -> Tensor:
    """Dot products (A, N, B, N′) of every location with every location, in float32 whatever the input's precision.

    scale divides by √D, as AMDIM does.
    """
    with torch.autocast(antecedents_AND.device.type, enabled=False):
        product = torch.einsum("and,bmd->anbm", antecedents_AND.float(), consequents_BND.float())
    return product / antecedents_AND.shape[-1] ** 0.5 if scale else product


def info_nce(scores_ANBM: Tensor, offset: int = 0) -> Tensor:
    """InfoNCE over locations, the mean over antecedents, their locations and the consequent's locations.

    VDIM Eq. 3, read with the antecedent location i fixed: the positive is (i, i′) of one video; the denominator
    runs over every video of the batch, its own included, and all locations i′.
    scores: (A, N, B, M); antecedent a belongs to consequent video offset + a. Returns a scalar.
    """
    A = scores_ANBM.shape[0]
    normaliser_AN = scores_ANBM.flatten(2).logsumexp(-1)
    own = torch.arange(A, device=scores_ANBM.device)
    positive_ANM = scores_ANBM[own, :, own + offset]
    return normaliser_AN.mean() - positive_ANM.mean()


@torch.no_grad()
def top1(scores_ANBM: Tensor, offset: int = 0) -> Tensor:
    """Share of antecedent locations whose best consequent belongs to their own video; chance is 1/B."""
    A, _N, _, M = scores_ANBM.shape
    best = scores_ANBM.flatten(2).argmax(-1) // M
    own = torch.arange(A, device=best.device)[:, None] + offset
    return (best == own).float().mean()
