"""Classifiers on frozen features: linear, or with one hidden layer.

Letters: N samples (windows, or videos), D features, C classes, M videos.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation import metrics
from evaluation.features import Features, video_means
from evaluation.splits import Labelled

DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Head:
    """hidden: width of the layer between, 0 for none. dropout: before the last layer, of the non-linear probe."""

    hidden: int = 0
    dropout: float = 0.0
    lr: float = 1e-2
    epochs: int = 100
    batch_size: int = 1024


@dataclass(frozen=True)
class Trained:
    """probabilities: (M, C) of the tested videos in the order of rows (M,). chosen: what the validation part chose."""

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    chosen: dict[str, Any]


def train_and_test(
    train: Features,
    test: Features,
    labelled: Labelled,
    head: Head,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Trained:
    """Train on the windows of the training videos, predict the test videos as the mean of their windows.

    Features are standardised by the training part's mean and deviation (batch norm without its affine map: TCP section
    4.2.3). A fifth of the training videos chooses weight decay and epoch; then all of them train as long.
    """
    videos = np.unique(train.row)
    held = np.isin(train.row, videos[labelled.held_out(videos, seed)])
    y = labelled.labels[train.row]

    def judge(model: Classifier) -> tuple[float, float]:
        rows, p_MC = video_means(train.row[held], model.predict(train.x[held]))
        truth = labelled.labels[rows]
        likelihood = np.log(np.maximum(p_MC[np.arange(len(truth)), truth], 1e-12)).mean()
        return float(metrics.hits(p_MC, truth).mean()), float(likelihood)

    model, chosen = fit(train.x, y, held, len(labelled.classes), head, judge, seed=seed, device=device)
    rows, p_MC = video_means(test.row, model.predict(test.x))
    return Trained(rows, p_MC, chosen)


def fit(
    x_ND: NDArray[np.float32],
    y_N: NDArray[np.int64],
    held_N: NDArray[np.bool_],
    classes: int,
    head: Head,
    judge: Callable[["Classifier"], tuple[float, float]],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    weights_N: NDArray[np.int64] | None = None,
) -> "tuple[Classifier, dict[str, Any]]":
    """The classifier trained on all samples with the weight decay and for the epochs that `judge`, of one trained
    without the held-out samples, puts first: higher is better, the second number decides among equals.

    weights: how often a sample occurs in an epoch. Without held-out samples the last epoch and a decay of 0.01 are taken.
    """
    repeat = np.ones(len(y_N), np.int64) if weights_N is None else weights_N
    seen = np.repeat(np.flatnonzero(~held_N), repeat[~held_N])
    best: tuple[tuple[float, float], float, int] | None = None
    if held_N.any():
        for decay in DECAYS:
            for epoch, model in _epochs(
                x_ND[seen], y_N[seen], classes, head, decay, seed, device, head.epochs
            ):
                if (epoch + 1) % 5 == 0 and (best is None or judge(model) > best[0]):
                    best = judge(model), decay, epoch + 1
    judged, decay, epochs = best or ((float("nan"), 0.0), 1e-2, head.epochs)
    every = np.repeat(np.arange(len(y_N)), repeat)
    *_, (_, model) = _epochs(x_ND[every], y_N[every], classes, head, decay, seed, device, epochs)
    return model, {"weight_decay": decay, "epochs": epochs, "validation_top1": judged[0]}


class Classifier(nn.Module):
    """Standardise, then one layer or two; the weights are drawn as torch does."""

    mean: Tensor
    scale: Tensor

    def __init__(self, x_ND: Tensor, classes: int, head: Head) -> None:
        super().__init__()
        deviation = x_ND.std(0, correction=0)
        self.register_buffer("mean", x_ND.mean(0))
        self.register_buffer("scale", torch.where(deviation > 1e-6 * deviation.max(), deviation, 1.0))
        D = x_ND.shape[1]
        layers: list[nn.Module] = [nn.Linear(D, head.hidden), nn.ReLU()] if head.hidden else []
        dropout = [nn.Dropout(head.dropout)] if head.dropout else []
        self.layers = nn.Sequential(*layers, *dropout, nn.Linear(head.hidden or D, classes))

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.layers((x_ND - self.mean) / self.scale)

    @torch.no_grad()
    def predict(self, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (N, C)."""
        self.eval()
        device = next(self.parameters()).device
        parts = [
            self(torch.from_numpy(x_ND[i : i + 8192]).to(device)).double().softmax(1).cpu()
            for i in range(0, len(x_ND), 8192)
        ]
        self.train()
        return torch.cat(parts).numpy()


def _epochs(
    samples: NDArray[np.float32],
    y: NDArray[np.int64],
    classes: int,
    head: Head,
    decay: float,
    seed: int,
    device: torch.device | str,
    epochs: int,
) -> Iterator[tuple[int, Classifier]]:
    """Yield (epoch, classifier) after each epoch of Adam with this weight decay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x, target = torch.from_numpy(samples).to(device), torch.from_numpy(y).to(device)
        model = Classifier(x, classes, head).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=head.lr, weight_decay=decay)
        shuffle = torch.Generator().manual_seed(seed)
        for epoch in range(epochs):
            for part in torch.randperm(len(x), generator=shuffle).to(device).split(head.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x[part]), target[part]).backward()
                optimizer.step()
            yield epoch, model
