"""Pace prediction's contrast between clips (Wang, Jiao & Liu 2020, Eq. 2 and 3), and its confusion of paces.

Letters: A anchors, the clips of this process; B the clips they are contrasted with; D features; M paces.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from objectives import nce
from objectives.pace_config import pace_name

Reduction = Literal["sum", "mean"]


def contrast(
    z_AD: Tensor, ids_A: Tensor, reduction: Reduction, *, gathered: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 2 or 3, by what the positives share: ids are the clips' videos, or their paces.

    z: embeddings (A, D) of this process's clips, whose others are its own or, gathered, all processes'. Returns the
    loss and the metrics loss_ctr, ctr_top1 (share of anchors whose best clip is a positive) and ctr_chance.
    """
    others_BD, ids_B, own = z_AD, ids_A, 0
    if gathered:
        own = nce.rank_offset(len(z_AD))
        others_BD, ids_B = nce.gather(z_AD), nce.gather(ids_A)
    positive_AB, itself_AB = pairs(ids_A, ids_B, own)
    scores_AB = nce.scores(z_AD[:, None], others_BD[:, None], scale=False)[:, 0, :, 0]
    scores_AB = scores_AB.masked_fill(itself_AB, torch.finfo(scores_AB.dtype).min)
    loss = positive_pair_nce(scores_AB, positive_AB, reduction)
    hits_A = positive_AB.gather(1, scores_AB.detach().argmax(1, keepdim=True))
    chance = positive_AB.sum() / (~itself_AB).sum().clamp(min=1)
    return loss, {"loss_ctr": loss.detach(), "ctr_top1": hits_A.float().mean(), "ctr_chance": chance}


def pairs(ids_A: Tensor, ids_B: Tensor, own: int = 0) -> tuple[Tensor, Tensor]:
    """Which of the clips B are positives of the clips A, those of the same id, and which are A's clips themselves.

    Clip a of A is clip own + a of B. Returns two bool tensors (A, B).
    """
    itself_AB = torch.eye(len(ids_A), len(ids_B), dtype=torch.bool, device=ids_A.device).roll(own, 1)
    return (ids_A[:, None] == ids_B) & ~itself_AB, itself_AB


def positive_pair_nce(scores_AB: Tensor, positive_AB: Tensor, reduction: Reduction) -> Tensor:
    """−1/A Σ over anchors and their positives of log(exp(score) / Σ over all of exp(score)): Eq. 2 and 3.

    scores (A, B), the least float where anchor and column are the same clip; positive (A, B) bool. An anchor without positives
    adds nothing. mean: the mean over an anchor's positives instead of their sum. Returns a scalar.
    """
    log_p_AB = (scores_AB - scores_AB.logsumexp(1, keepdim=True)).masked_fill(~positive_AB, 0.0)
    sums_A = log_p_AB.sum(1)
    return -(sums_A / positive_AB.sum(1).clamp(min=1) if reduction == "mean" else sums_A).mean()


@torch.no_grad()
def confusion(guesses_A: Tensor, paces_A: Tensor, paces: Sequence[float]) -> dict[str, Tensor]:
    """top1; for each pace its accuracy, and confusion_TRUE_GUESSED, the share of its clips taken for another.

    guesses, paces_A: (A,) int64, indices into `paces`. Accuracy and confusion are (2,): clips, and all of that pace.
    """
    M = len(paces)
    counts_MM = torch.bincount(paces_A * M + guesses_A, minlength=M * M).view(M, M)
    wholes_M = counts_MM.sum(1)
    right = counts_MM.diagonal().sum() / len(paces_A)
    names = [pace_name(pace) for pace in paces]
    metrics = {f"accuracy_{names[i]}": torch.stack([counts_MM[i, i], wholes_M[i]]) for i in range(M)}
    metrics |= {
        f"confusion_{names[i]}_{names[j]}": torch.stack([counts_MM[i, j], wholes_M[i]])
        for i in range(M)
        for j in range(M)
        if i != j
    }
    return {"top1": right, "chance": right.new_tensor(1 / M), **metrics}
