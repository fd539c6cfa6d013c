"""Contrastive arithmetic that the objectives share.

Letters: A antecedent videos, B consequent videos; N locations of a video; D features.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
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


class _Diagonal(torch.autograd.Function):
    """Cross-entropy of each row's own column, a chunk of rows at a time: R×C scores need not exist as a whole.

    The gradients are made along with the scores, which are then forgotten. (Once differentiable.)
    """

    @staticmethod
    def forward(
        ctx: Any, rows_RD: Tensor, columns_CD: Tensor, offset: int, at_once: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        R, chunk = len(rows_RD), max(1, at_once // len(columns_CD))
        losses, better, equal, row_gradients = [], [], [], []
        column_gradient = torch.zeros_like(columns_CD) if ctx.needs_input_grad[1] else None
        for start in range(0, R, chunk):
            part_rD = rows_RD[start : start + chunk]
            scores_rC = part_rD @ columns_CD.T
            own_r1 = torch.arange(start, start + len(part_rD), device=part_rD.device)[:, None] + offset
            positive_r1 = scores_rC.gather(1, own_r1)
            better.append((~(scores_rC <= positive_r1)).sum(1))  # a NaN never wins
            equal.append((scores_rC == positive_r1).sum(1))
            losses.append(scores_rC.logsumexp(1) - positive_r1[:, 0])
            if any(ctx.needs_input_grad[:2]):
                slope_rC = scores_rC.softmax(1).scatter_add_(1, own_r1, -torch.ones_like(positive_r1))
                row_gradients.append(slope_rC @ columns_CD)
                if column_gradient is not None:
                    column_gradient.addmm_(slope_rC.T, part_rD)
        ctx.save_for_backward(torch.cat(row_gradients) / R if row_gradients else None, column_gradient)
        ctx.rows = R
        outputs = torch.cat(losses).mean(), torch.cat(better), torch.cat(equal)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        row_gradient, column_gradient = ctx.saved_tensors
        return (
            None if row_gradient is None else gradient * row_gradient,
            None if column_gradient is None else gradient / ctx.rows * column_gradient,
            None,
            None,
        )


def dense(
    predicted_BNLD: Tensor,
    target_BNLD: Tensor,
    *,
    gathered: bool = False,
    cosine: bool = False,
    temperature: float = 1.0,
    at_once: int = 2**26,
) -> tuple[Tensor, dict[str, Tensor]]:
    """NCE of each prediction with the target of its own video, step and location (DPC Eq. 5, MemDPC Eq. 6).

    The mean cross-entropy over rows, the predictions (video, step, location), of a softmax over columns, all targets
    of this process or, gathered, of all processes. Scores are dot products, of vectors of unit length with `cosine`,
    divided by `temperature`, in float32 whatever the input's precision. No more than `at_once` scores exist at any time
    (2²⁶ are 256 MiB, but one row always does). Both inputs get gradients.

    Returns the loss and the metrics top1, top3, top5 (share of rows whose target is among the best; a tie counts as
    the chance of winning it), chance (of top1), and temporal, spatial, easy: the shares of the negatives that are of
    the same video and location, of the same video elsewhere, and of other videos (DPC section 3.2).
    """
    _, N, L, _ = target_BNLD.shape
    with torch.autocast(predicted_BNLD.device.type, enabled=False):
        rows, columns = predicted_BNLD.float().flatten(0, 2), target_BNLD.float()
        columns = (gather(columns) if gathered else columns).flatten(0, 2)
        if cosine:
            rows, columns = F.normalize(rows, dim=1), F.normalize(columns, dim=1)
        offset = rank_offset(len(rows)) if gathered else 0
        loss, better, equal = _Diagonal.apply(rows / temperature, columns, offset, at_once)
    metrics = {f"top{k}": ((k - better) / equal).clamp(0, 1).mean() for k in (1, 3, 5)}
    C = len(columns)
    shares = {"chance": 1 / C}
    counts = negative_counts(C // (N * L), N, L)
    shares |= {kind: count / max(C - 1, 1) for kind, count in counts.items()}
    return loss, metrics | {name: loss.new_tensor(share) for name, share in shares.items()}


def negative_counts(videos: int, steps: int, locations: int) -> dict[str, int]:
    """Negatives of one prediction by kind: q − 1, (HW − 1)q and (B − 1)HW·q (DPC section 3.2)."""
    return {
        "temporal": steps - 1,
        "spatial": (locations - 1) * steps,
        "easy": (videos - 1) * locations * steps,
    }
