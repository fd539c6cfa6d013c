"""How a paper looks at labelled videos once the network is trained: which windows, and which classifier."""

from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.eval_clips import EvalLayout
from pipelines.views import ViewSpec


@dataclass(frozen=True)
class FineTuning:
    """Supervised training of the whole network.

    spec: a training clip, augmented; tests see the same frames without augmentation.
    decay_at: steps at which the learning rate is multiplied by decay_by; decay_every: it is multiplied after every so
    many steps too, 0 is never.
    weight_decay: towards 0. pull: towards the pretrained weights (TCP section 4.2.4).
    hidden: width of a layer before the last; 0 is none. batch_norm: of the feature, before the head's first layer.
    freeze: train the head alone; the network stays in evaluation mode.
    scratch: the recipe for random weights; None is this one without the pull.
    """

    spec: ViewSpec
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-3
    pull: float = 0.0
    steps: int = 30_000
    batch_size: int = 32
    decay_at: tuple[int, ...] = (18_000, 24_000)
    decay_every: int = 0
    decay_by: float = 0.1
    dropout: float = 0.5
    hidden: int = 0
    batch_norm: bool = True
    freeze: bool = False
    scratch: "FineTuning | None" = None

    @property
    def from_scratch(self) -> "FineTuning":
        """The recipe for random weights, which are not pulled towards."""
        return self.scratch or replace(self, pull=0.0)


@dataclass(frozen=True)
class Downstream:
    """spec: one window of the frozen network, V views of T frames without augmentation.

    train, test: which windows of a video take part. average: a video's prediction is the mean of its windows'
    probabilities, or one from the mean of their features. hidden, dropout: of the non-linear probe.
    """

    spec: ViewSpec
    finetuning: FineTuning
    train: EvalLayout = field(default_factory=lambda: EvalLayout(count=10))
    test: EvalLayout = field(default_factory=lambda: EvalLayout(count=10))
    average: Literal["probabilities", "features"] = "probabilities"
    hidden: int = 512
    dropout: float = 0.5
