"""Video Deep InfoMax (Hjelm & Bachman 2020, arXiv:2007.13278; papers' sections and equations below are its).

    views        first: 32 frames; second: 32 frames from `offset`, every `downsample`-th (section 3.1)
    encoder      Table 1; features of blocks 5 and 6 (local 1, local 2) and 8 (global)
    loss         InfoNCE between layers of the first view (antecedents) and of the second (consequents),
                 Eq. 3 and 4, for J = {5, 6, 8} against J′ = {8} and the reverse

Settled here, where the paper is silent: the loss is the mean over locations and the sum over layer pairs
(each pair weighs alike, as in AMDIM; Eq. 4's sum over locations would weigh local 1 343 times the global pair),
and the pair (8, 8), which is in J×J′ and in its reverse, counts once. Negatives are features of other videos (Figure 1
and AMDIM's code); --own-locations is Eq. 3 as written. Boxes, jitter, grey and the one flip for both views are AMDIM's
for 128² images. With temporal difference, φ normalises differences by a batch norm of their own, so that the
statistics which evaluation uses are those of plain features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.vdim import ContrastiveModel, VDIMEncoder
from objectives import losses
from objectives.base import Downstream, FineTuning, Objective, Output, Recipe, ShardSettings
from pipelines.eval_clips import EvalLayout
from pipelines.views import Jitter, ViewSpec, eval_view
from shards import InputError, above, at_least

FRAMES, SIZE, LOCAL_1, LOCAL_2, GLOBAL = 32, 128, 5, 6, 8


@dataclass(frozen=True)
class VDIMConfig:
    """The defaults are the paper's best model (section 4.2) at the width of Table 1."""

    backbone: str = "vdim"
    """Table 1's encoder and no other: "local" features must see a patch of the clip only."""
    width: float = 1.0
    """Multiplies every channel count of the encoder; 0.125 trains on a CPU."""
    downsample: Literal[1, 2, 3] = 2
    """The second view takes every DOWNSAMPLE-th frame."""
    offset: Literal[0, 32] = 0
    """Frame at which the second view begins, counted from the first view's first."""
    temporal_difference: bool = True
    """Consequents are f(second half) − f(first half) of a second view of 64 frames."""
    colour: Literal["jitter", "lab"] = "jitter"
    """Random colour jitter and grey, or Lab with one channel dropped."""
    jitter: tuple[float, ...] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast and saturation change by up to these shares, hue by this share of the circle (AMDIM)."""
    jitter_probability: float = 0.8
    """Share of the views whose colours are jittered (AMDIM)."""
    grey: float = 0.25
    """Share of the views that lose their colour (AMDIM)."""
    flip: Literal["clip", "view", "none"] = "clip"
    """Mirror both views or none of them (AMDIM), each view on its own, or never."""
    rotation: float = 0.0
    """Turn each view by an angle from ±this many degrees; 0 is off."""
    padding: Literal["repeat_last", "wrap", "error"] = "repeat_last"
    """A video shorter than the clip repeats its last frame, starts over, or is left out."""
    antecedents: tuple[int, ...] = (LOCAL_1, LOCAL_2, GLOBAL)
    """J: blocks of Table 1 whose features of the first view predict."""
    consequents: tuple[int, ...] = (GLOBAL,)
    """J′: blocks whose features of the second view are predicted."""
    reverse: bool = True
    """Use the pairs J′ × J as well."""
    negatives: Literal["local", "gathered"] = "local"
    """Contrast with the videos of this process, or of all of them (with gradient)."""
    own_locations: bool = False
    """Contrast a positive with the other locations of its own video too, as Eq. 3 is written."""
    init: Literal["amdim", "torch"] = "amdim"
    """Residual branches begin at zero, other convolutions with He's weights (AMDIM's code); or torch's own for all."""
    scale_scores: bool = True
    """Divide scores by √D (AMDIM)."""
    soft_clip: float = 20.0
    """c·tanh(score/c) (AMDIM); 0 is off."""
    score_penalty: float = 5e-2
    """Weight of the mean squared score, before clipping (AMDIM); 0 is off."""
    lr: float = 2e-4
    """Adam's learning rate."""
    warmup_steps: int = 500
    """Optimizer steps of linear warm-up (AMDIM's code; the paper names none)."""

    def __post_init__(self) -> None:
        if self.backbone != "vdim":
            raise InputError(
                f"--backbone {self.backbone}: VDIM contrasts features of patches of the clip, and only vdim, its own "
                "encoder, has them; the padded layers of others see nearly all of it. Leave the flag out"
            )
        for flag, layers in (("--antecedents", self.antecedents), ("--consequents", self.consequents)):
            if not layers or not set(layers) <= {3, 4, 5, 6, 7, 8}:
                raise InputError(
                    f"{flag} {layers}: name blocks of Table 1, from 3 to 8 (5 local 1, 6 local 2, 8 global)"
                )
        used = {layer for pair in self.pairs for layer in pair}
        if GLOBAL not in used:
            raise InputError(
                "--antecedents, --consequents: block 8, the encoder's output, must be in one of them"
            )
        unplaced = {k for _, k in self.pairs} - {j for j, _ in self.pairs}
        if self.temporal_difference and unplaced:
            raise InputError(
                f"--temporal-difference: block {min(unplaced)} must be an antecedent too, since φ's batch norm of "
                "plain features would never be trained; add it to --antecedents, or use --reverse"
            )
        if len(self.jitter) != 4 or not all(0 <= strength < float("inf") for strength in self.jitter):
            raise InputError(
                f"--jitter {' '.join(map(str, self.jitter))}: give brightness, contrast, saturation and hue, each at "
                "least 0, such as 0.4 0.4 0.4 0.1"
            )
        for name in ("grey", "jitter_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be from 0 to 1")
        at_least(self, 0, "rotation", "soft_clip", "score_penalty", "warmup_steps")
        above(self, 0, "width", "lr")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Layer pairs (j, j′) of Eq. 4, each once."""
        forward = [(j, k) for j in self.antecedents for k in self.consequents]
        backward = [(k, j) for j, k in forward] if self.reverse else []
        return tuple(dict.fromkeys(forward + backward))


class VDIM(Objective):
    """Video Deep InfoMax. encoder: models.vdim.VDIMEncoder; phi: the contrastive models φ_j, one a layer."""

    name = "vdim"
    Config = VDIMConfig
    recipe = Recipe(steps=100_000, batch_size=15)  # section 4.3: 240 clips on 16 GPUs
    small_recipe = Recipe(steps=60, batch_size=32)
    shards = ShardSettings(short_side=192)  # random boxes of .3 of the picture are seldom smaller than 128²

    def __init__(self, config: VDIMConfig) -> None:
        super().__init__(config)
        self.layers = tuple(sorted({GLOBAL, *(layer for pair in config.pairs for layer in pair)}))
        self.encoder = VDIMEncoder(config.width, he_init=config.init == "amdim")
        dims = self.encoder.dims
        self.phi = nn.ModuleDict({str(j): ContrastiveModel(dims[j], self.encoder.dim) for j in self.layers})
        self.difference_norms = nn.ModuleDict(
            {str(k): nn.BatchNorm3d(self.encoder.dim) for _, k in config.pairs}
            if config.temporal_difference
            else {}
        )
        self.to(memory_format=torch.channels_last_3d)  # as the loader's batches are

    @staticmethod
    def small() -> VDIMConfig:
        """Lab drop learns several times sooner than jitter at this size; two views cost two thirds of three."""
        return VDIMConfig(width=0.125, temporal_difference=False, colour="lab", lr=5e-4, warmup_steps=10)

    @staticmethod
    def view_spec(config: VDIMConfig) -> ViewSpec:
        """V = 2 views, or 3 with temporal difference: the second view's two halves share one augmentation."""
        b, c, s, h = config.jitter
        jitter = Jitter(b, c, s, h, probability=config.jitter_probability, grey=config.grey)
        second = [config.offset + config.downsample * t for t in range(2 * FRAMES)]
        halves = [second[:FRAMES], second[FRAMES:]][: 1 + config.temporal_difference]
        return ViewSpec(
            offsets=(tuple(range(FRAMES)), *map(tuple, halves)),
            size=SIZE,
            area=(0.3, 1.0),
            ratio=(0.7, 1.4),
            flip=0.0 if config.flip == "none" else 0.5,
            flip_scope="clip" if config.flip == "clip" else "box",
            rotation=config.rotation,
            jitter=jitter if config.colour == "jitter" else None,
            lab_drop=config.colour == "lab",
            box_scope="view",
            colour_scope="view",
            groups=(0, 1, 1)[: 1 + len(halves)],
            padding=config.padding,
        )

    def forward(self, batch: Mapping[str, Any]) -> Output:
        """views (B, V, 3, 32, 128, 128), V = 3 with temporal difference, else 2."""
        views_BVCTHW: Tensor = batch["views"]
        B, V = views_BVCTHW.shape[:2]
        if B < 2:
            raise InputError("--batch-size 1: VDIM contrasts the videos of a batch; give 2 or more")
        features = self.encoder(views_BVCTHW.flatten(0, 1), self.layers)
        by_view = {layer: f.unflatten(0, (B, V)) for layer, f in features.items()}
        antecedents = {j: self.phi[str(j)](by_view[j][:, 0]) for j, _ in self.config.pairs}
        consequents = {k: self._consequent(k, by_view[k]) for _, k in self.config.pairs}
        of_locations = ({j: f.flatten(2).mT for j, f in one.items()} for one in (antecedents, consequents))
        return self._contrast(*of_locations)

    def _consequent(self, layer: int, f_BVDthw: Tensor) -> Tensor:
        """φ of the second view's features, or of their change from its first half to its second."""
        phi: ContrastiveModel = self.phi[str(layer)]  # type: ignore[assignment]
        if not self.config.temporal_difference:
            return phi(f_BVDthw[:, 1])
        return self.difference_norms[str(layer)](phi.project(f_BVDthw[:, 2] - f_BVDthw[:, 1]))

    def _contrast(self, antecedents: dict[int, Tensor], consequents: dict[int, Tensor]) -> Output:
        """Eq. 4 over the layer pairs; antecedents, consequents: layer → (B, N, D)."""
        config = self.config
        B = next(iter(antecedents.values())).shape[0]
        offset = 0
        if config.negatives == "gathered":
            consequents = {k: losses.gather(c) for k, c in consequents.items()}
            offset = losses.rank_offset(B)
        loss = torch.zeros((), device=next(iter(antecedents.values())).device)
        metrics: dict[str, Tensor] = {}
        for j, k in config.pairs:
            scores = losses.scores(antecedents[j], consequents[k], scale=config.scale_scores)
            penalty = config.score_penalty * scores.square().mean() if config.score_penalty else 0.0
            clipped = config.soft_clip * torch.tanh(scores / config.soft_clip) if config.soft_clip else scores
            pair_loss = losses.info_nce(clipped, offset, own_locations=config.own_locations)
            loss = loss + pair_loss + penalty
            metrics |= {f"loss_{j}_{k}": pair_loss.detach(), f"top1_{j}_{k}": losses.top1(scores, offset)}
        headline = (GLOBAL, GLOBAL) if (GLOBAL, GLOBAL) in config.pairs else config.pairs[0]
        metrics["top1"] = metrics[f"top1_{headline[0]}_{headline[1]}"]
        metrics["chance"] = torch.full((), 1 / next(iter(consequents.values())).shape[0], device=loss.device)
        return Output(loss, metrics)

    def embed(self, views: Tensor) -> Tensor:
        """views (B, V, 3, 32, 128, 128) → φ_8 ∘ Ψ, (B, V, D): the paper's final encoder (section 4.1)."""
        f = self.encoder(views.flatten(0, 1), (GLOBAL,))[GLOBAL]
        return self.phi[str(GLOBAL)](f).flatten(1).unflatten(0, views.shape[:2])

    def downstream(self, subsequences: int = 4) -> Downstream:
        """K = 4 subsequences of 32 frames (section 4.1); frozen as in pretraining, fine-tuned with Lab drop, each
        subsequence augmented on its own (Figure 3).

        Settled here: windows overlap by half; the rate halves every 3,000 of 30,000 steps (section 4.3, where HMDB51 has
        400 of 4,000; section 4.1 says every 30,000, which is all of them). The paper uses K = 2 for HMDB51.
        """
        offsets = tuple(tuple(range(k * FRAMES, (k + 1) * FRAMES)) for k in range(subsequences))
        spec = replace(
            self.view_spec(self.config),
            offsets=offsets,
            groups=(),
            flip=0.5,
            flip_scope="box",
            rotation=0.0,
            padding="repeat_last",
        )
        every = EvalLayout(hop=spec.span // 2)
        trained = replace(spec, jitter=None, lab_drop=True)
        tuning = FineTuning(
            trained, weight_decay=0.0, steps=30_000, batch_size=15, decay_at=(), decay_every=3_000, decay_by=0.5,
            dropout=0.2, hidden=1024,
        )  # fmt: skip
        return Downstream(eval_view(spec), tuning, every, every, hidden=1024, dropout=0.2)

    def represent(self, views: Tensor) -> Tensor:
        """The subsequences' features side by side, (B, V·D) (section 4.1)."""
        return self.embed(views).flatten(1)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, 2e-4 (section 4)."""
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)
