"""A pretrained network with a classifier on top, to be trained as a whole."""

import torch
from torch import Tensor, nn

from evaluation.model import Representation
from objectives import Objective
from objectives.downstream import FineTuning
from pipelines.views import ViewSpec, eval_view, single_start


class Classifier(nn.Module):
    """views (B, V, C, T, H, W) → logits (B, classes), of the windows' features. layer: as of Representation."""

    def __init__(
        self, objective: Objective, spec: ViewSpec, classes: int, tuning: FineTuning, layer: str
    ) -> None:
        super().__init__()
        self.objective, self.layer = objective, layer
        with torch.no_grad():
            D = Representation(objective.eval(), layer)(blank(1, spec)).shape[1]
        layers: list[nn.Module] = [nn.BatchNorm1d(D)]
        if tuning.hidden:
            layers += [nn.Linear(D, tuning.hidden), nn.ReLU()]
        layers += [nn.Dropout(tuning.dropout), nn.Linear(tuning.hidden or D, classes)]
        self.head = nn.Sequential(*layers)

    def represent(self, views: Tensor) -> Tensor:
        """The features (B, D) that the head classifies."""
        return Representation(self.objective, self.layer)(views)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.represent(views))


def copy_of(trained: Objective) -> Objective:
    """Another network with the same weights."""
    objective = type(trained)(trained.config)
    objective.load_state_dict(trained.state_dict())
    return objective


def still_spec(spec: ViewSpec) -> ViewSpec:
    """One window of a test video: the training clip without augmentation; its first view alone where views start independently."""
    still = eval_view(spec)
    return single_start(still) if still.starts_differ else still


def used_parameters(classifier: Classifier, spec: ViewSpec) -> list[nn.Parameter]:
    """Those that logits depend on; the others, of pretraining's heads, are frozen, as DDP demands."""
    classifier.eval()
    classifier(blank(2, spec)).sum().backward()
    for parameter in classifier.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return [parameter for parameter in classifier.parameters() if parameter.requires_grad]


def blank(count: int, spec: ViewSpec) -> Tensor:
    """So many windows of nothing."""
    return torch.zeros(count, spec.views, spec.channels, spec.frames, spec.size, spec.size)
