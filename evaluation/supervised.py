"""A pretrained network with a classifier on top: an objective like any other, and what it predicts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.context import Context
from evaluation.features import Features
from evaluation.model import Representation
from objectives import Objective
from objectives.base import FineTuning, Output
from pipelines.eval_clips import EvalClips, EvalSampler
from pipelines.views import ViewSpec, eval_view, single_start
from shards import InputError


@dataclass(frozen=True)
class ClassifierConfig:
    """objective, network: the method and its config. layer: whose output is classified, "" for the method's feature."""

    objective: str
    network: dict[str, Any]
    layer: str
    classes: int
    tuning: FineTuning


class Classifier(Objective):
    """A pretrained network with a head on top: views (B, V, C, T, H, W) and label (B,) → cross entropy and top-1.

    It has no name, so it is no method of train.py.
    """

    def __init__(self, network: Objective, layer: str, classes: int, tuning: FineTuning) -> None:
        super().__init__(ClassifierConfig(network.name, asdict(network.config), layer, classes, tuning))
        self.name = f"{network.name}-classifier"  # type: ignore[misc]
        self.network = type(network)(network.config)
        self.network.load_state_dict(network.state_dict())
        self.start = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        spec = tuning.spec
        with torch.no_grad():
            D = Representation(self.network.eval(), layer)(_blank(1, still_spec(spec))).shape[1]
        layers: list[nn.Module] = [nn.BatchNorm1d(D)] if tuning.batch_norm else []
        if tuning.hidden:
            layers += [nn.Linear(D, tuning.hidden), nn.ReLU()]
        layers += [nn.Dropout(tuning.dropout), nn.Linear(tuning.hidden or D, classes)]
        self.head = nn.Sequential(*layers)
        self._train_only_what_is_used(still_spec(spec))
        self.train()

    def _train_only_what_is_used(self, spec: ViewSpec) -> None:
        """Freeze what the logits do not depend on, such as the heads of pretraining: DDP demands it."""
        self.eval()
        self.classify(_blank(2, spec)).sum().backward()
        for name, parameter in self.named_parameters():
            trained = not self.config.tuning.freeze or name.startswith("head.")
            parameter.requires_grad_(parameter.grad is not None and trained)
            parameter.grad = None

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.config.tuning.freeze:
            self.network.eval()
        return self

    @staticmethod
    def small() -> Any:
        raise NotImplementedError("made from a network, not from a config")

    @staticmethod
    def view_spec(config: ClassifierConfig) -> ViewSpec:
        return config.tuning.spec

    def embed(self, views: Tensor) -> Tensor:
        return self.network.embed(views)

    def represent(self, views: Tensor) -> Tensor:
        """The features (B, D) that the head classifies."""
        return Representation(self.network, self.config.layer)(views)

    def classify(self, views: Tensor) -> Tensor:
        return self.head(self.represent(views))

    def forward(self, batch: Mapping[str, Any]) -> Output:
        logits, label = self.classify(batch["views"]), batch["label"]
        loss = F.cross_entropy(logits, label)
        right = (logits.argmax(1) == label).sum()
        top1 = torch.stack([right.float(), torch.full_like(right, len(label), dtype=torch.float32)])
        if self.config.tuning.pull:
            loss = loss + self._distance()
        return Output(loss, {"top1": top1})

    def _distance(self) -> Tensor:
        """Decay towards the weights that training started from (TCP section 4.2.4)."""
        distances = []
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                self.start[name] = self.start[name].to(parameter.device)
                distances.append((parameter - self.start[name]).square().sum())
        return self.config.tuning.pull / 2 * torch.stack(distances).sum()

    def optimizer(self) -> torch.optim.Optimizer:
        tuning = self.config.tuning
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if tuning.optimizer == "adam":
            return torch.optim.Adam(trained, lr=tuning.lr, weight_decay=tuning.weight_decay)
        return torch.optim.SGD(trained, lr=tuning.lr, momentum=0.9, weight_decay=tuning.weight_decay)

    def learning_rate(self, step: int) -> float:
        """Factor on the learning rate in optimizer step `step`, counted from 0."""
        tuning = self.config.tuning
        falls = sum(step >= at for at in tuning.decay_at)
        falls += step // tuning.decay_every if tuning.decay_every else 0
        return float(tuning.decay_by**falls)


def _blank(count: int, spec: ViewSpec) -> Tensor:
    return torch.zeros(count, spec.views, spec.channels, spec.frames, spec.size, spec.size)


def still_spec(spec: ViewSpec) -> ViewSpec:
    """A clip of a test video: the training clip without augmentation; its first view where views start independently."""
    still = eval_view(spec)
    return single_start(still) if still.starts_differ else still


def predict(
    context: Context, classifier: Classifier, clips: EvalClips, *, by_feature: bool = False
) -> Features:
    """Each clip's probabilities; by_feature: each video's, from the mean of its clips' features.

    All processes call it together, and each gets all of them. Raises InputError where no video can be decoded.
    """
    accelerator, dataset = context.compute.accelerator, context.dataset
    broadcast(list(classifier.buffers()))  # all look with the statistics that are saved: the main process's
    spec = still_spec(classifier.config.tuning.spec)
    sampler = context.compute.my_batches(EvalSampler(dataset, clips, spec, context.compute.batch_size))
    classifier.eval()
    found: list[tuple[NDArray, NDArray]] = []
    with context.compute.loader(dataset, sampler) as loader:
        for batch in loader:
            if len(batch["index"]):
                with torch.inference_mode(), accelerator.autocast():
                    feature = classifier.represent(batch["views"])
                    x = feature if by_feature else classifier.head(feature).double().softmax(1)
                found.append((batch["index"].numpy(), x.double().cpu().numpy()))
    everyones = gather_object([(found, loader.failed)])
    pairs = [pair for pairs, _ in everyones for pair in pairs]
    failed = {dataset.keys([row])[0]: why for _, rows in everyones for row, why in rows.items()}
    if not pairs:
        first = next(iter(failed.items()), "nothing selected")
        raise InputError(f"{dataset.path}: none of the videos can be decoded ({first})")
    index, x = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    order = np.argsort(index)
    index, x = index[order], x[order]
    features = Features(x, clips.row[index], clips.start[index], failed)
    if not by_feature:
        return features
    videos = features.by_video()
    with torch.inference_mode():
        mean = torch.from_numpy(videos.x).float().to(accelerator.device)
        return replace(videos, x=classifier.head(mean).double().softmax(1).cpu().numpy())
