"""Contrastive losses that objectives share, computed in float32.

    info_nce     locations of a video against all locations of other videos      VDIM, Eq. 3
    dense_nce    a prediction against all targets, few scores at a time          DPC, Eq. 5; MemDPC, Eq. 6
    nt_xent      views of a video against all other views                        SimCLR, Eq. 1
    pair_nce     clips with the same label against all other clips               Pace, Eq. 2 and 3
    gather       the same features from all processes, with gradient

Letters: A anchors, B videos or clips they are compared with; N, M locations of a video; V views; D features.
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Concatenates all ranks' tensors in rank order; a rank's gradient is the sum over all ranks' losses."""

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
    """Concatenate (B, …) of each rank to (world·B, …) in rank order, with gradient. One process gets x itself.

    All ranks give the same B and call it together. After DDP's mean over ranks, the gradient is that of one process
    whose loss is the mean over all samples.
    """
    return _Gather.apply(x.contiguous()) if dist.is_initialized() and dist.get_world_size() > 1 else x


def rank_offset(rows: int) -> int:
    """Index of this rank's first row in what `gather` returns, where each rank gave `rows` rows."""
    return dist.get_rank() * rows if dist.is_initialized() else 0


def scores(anchors_AND: Tensor, others_BMD: Tensor, *, scale: bool) -> Tensor:
    """Dot products (A, N, B, M) of every location with every location, float32. `scale` divides by √D (AMDIM)."""
    with torch.autocast(anchors_AND.device.type, enabled=False):
        product = torch.einsum("and,bmd->anbm", anchors_AND.float(), others_BMD.float())
    return product / anchors_AND.shape[-1] ** 0.5 if scale else product


def info_nce(scores_ANBM: Tensor, offset: int = 0, *, own_locations: bool = False) -> Tensor:
    """InfoNCE over locations: the mean over anchors, their locations and the positive video's locations.

    VDIM Eq. 3, read with the anchor's location i fixed: the positives are (i, i′) of one video. A positive's denominator
    has itself and all locations of all other videos (Figure 1; AMDIM's code); with own_locations the other locations of
    its own video too (Eq. 3 as it is written). scores: (A, N, B, M); anchor a is of video offset + a. Returns a scalar.
    """
    A, B = scores_ANBM.shape[0], scores_ANBM.shape[2]
    own_A = torch.arange(A, device=scores_ANBM.device)
    positive_ANM = scores_ANBM[own_A, :, own_A + offset]
    if own_locations:
        return scores_ANBM.flatten(2).logsumexp(-1).mean() - positive_ANM.mean()
    is_own_A1B1 = (torch.arange(B, device=own_A.device) == own_A[:, None] + offset)[:, None, :, None]
    negatives_AN = scores_ANBM.masked_fill(is_own_A1B1, -torch.inf).flatten(2).logsumexp(-1)
    return F.softplus(negatives_AN[..., None] - positive_ANM).mean()


@torch.no_grad()
def top1(scores_ANBM: Tensor, offset: int = 0) -> Tensor:
    """Share of the anchors' locations whose best match is of their own video; chance is 1/B. scores: as info_nce."""
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


def dense_nce(
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
    divided by `temperature`, in float32. No more than `at_once` scores exist at any time
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
    return loss, metrics | {name: torch.full_like(loss, share) for name, share in shares.items()}


def nt_xent(z_BVD: Tensor, *, temperature: float, gathered: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, Eq. 1; arXiv:2002.05709).

    z: embeddings (B, V, D) of V ≥ 2 views of each of B videos. The other views of its video are a view's positives; the
    denominator runs over all other views of this process or, gathered, of all processes. Scores are cosines divided by
    `temperature`. Returns the mean over views (and over a view's positives where V > 2), and the metrics of pair_nce.
    """
    B, V, _ = z_BVD.shape
    videos_A = torch.arange(B, device=z_BVD.device).repeat_interleave(V) + rank_offset(B)
    z_AD = F.normalize(z_BVD.float().flatten(0, 1), dim=1)
    return pair_nce(z_AD, videos_A, temperature=temperature, reduction="mean", gathered=gathered)


def pair_nce(
    z_AD: Tensor,
    ids_A: Tensor,
    *,
    temperature: float = 1.0,
    reduction: Literal["sum", "mean"] = "sum",
    gathered: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrast clips with the same id against all other clips. Scores are dot products divided by `temperature`.

    z: embeddings (A, D) of this process's clips; ids (A,) int64. The other clips are this process's or, gathered, all
    processes'. reduction: see positive_pair_nce. Returns the loss and the metrics top1 (share of the clips whose best
    match is a positive) and chance (share of the positives among all pairs of clips).
    """
    others_BD, ids_B, own = z_AD, ids_A, 0
    if gathered:
        own = rank_offset(len(z_AD))
        others_BD, ids_B = gather(z_AD), gather(ids_A)
    positive_AB, itself_AB = pairs(ids_A, ids_B, own)
    scores_AB = scores(z_AD[:, None], others_BD[:, None], scale=False)[:, 0, :, 0] / temperature
    scores_AB = scores_AB.masked_fill(itself_AB, torch.finfo(scores_AB.dtype).min)
    loss = positive_pair_nce(scores_AB, positive_AB, reduction)
    hits_A = positive_AB.gather(1, scores_AB.detach().argmax(1, keepdim=True))
    chance = positive_AB.sum() / (~itself_AB).sum().clamp(min=1)
    return loss, {"top1": hits_A.float().mean(), "chance": chance}


def pairs(ids_A: Tensor, ids_B: Tensor, own: int = 0) -> tuple[Tensor, Tensor]:
    """Which of the clips B have the same id as a clip of A, and which are that clip itself: two bool tensors (A, B).

    Clip a of A is clip own + a of B, and no positive of itself.
    """
    itself_AB = torch.eye(len(ids_A), len(ids_B), dtype=torch.bool, device=ids_A.device).roll(own, 1)
    return (ids_A[:, None] == ids_B) & ~itself_AB, itself_AB


def positive_pair_nce(scores_AB: Tensor, positive_AB: Tensor, reduction: Literal["sum", "mean"]) -> Tensor:
    """−1/A Σ over anchors and their positives of log(exp(score) / Σ over all of exp(score)).

    scores (A, B), the least float where anchor and column are the same clip; positive (A, B) bool. An anchor without
    positives adds nothing. reduction: over an anchor's positives, their sum or their mean. Returns a scalar.
    """
    log_p_AB = (scores_AB - scores_AB.logsumexp(1, keepdim=True)).masked_fill(~positive_AB, 0.0)
    sums_A = log_p_AB.sum(1)
    return -(sums_A / positive_AB.sum(1).clamp(min=1) if reduction == "mean" else sums_A).mean()


def negative_counts(videos: int, steps: int, locations: int) -> dict[str, int]:
    """Negatives of one prediction by kind: q − 1, (HW − 1)q and (B − 1)HW·q (DPC section 3.2)."""
    return {
        "temporal": steps - 1,
        "spatial": (locations - 1) * steps,
        "easy": (videos - 1) * locations * steps,
    }
