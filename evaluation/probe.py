"""Classifiers on frozen features: logistic regression, a network with one hidden layer, or attention over a feature map.

Letters: N samples (clips, or videos), D features, C classes, M videos.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from evaluation import metrics
from evaluation.context import Context
from evaluation.features import Features
from evaluation.metrics import Labelled, Split, with_fraction
from evaluation.results import Outcome, Trained
from pipelines.eval_clips import video_means

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn's logistic regression, from strong to weak
DECAYS = (0.0, 1e-3, 1e-1)


@dataclass(frozen=True)
class Head:
    """hidden: width of the layer between, 0 for none. token: numbers a place of a feature map, which are attended to; 0 for none.
    The rest is of the probes that Adam trains; dropout: before the last layer."""

    hidden: int = 0
    token: int = 0
    dropout: float = 0.0
    lr: float = 1e-3
    epochs: int = 100
    batch_size: int = 1024


@dataclass(frozen=True)
class _Fitting:
    head: Head
    classes: int
    seed: int
    device: torch.device | str


class Probe(Protocol):
    def predict(self, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (N, C)."""


class Linear:
    """Multinomial logistic regression."""

    def __init__(self, x_ND: NDArray, y_N: NDArray, classes: int, strength: float, times_N: NDArray) -> None:
        from sklearn.exceptions import ConvergenceWarning  # here, since it takes a second
        from sklearn.linear_model import LogisticRegression

        self.classes = classes
        self.model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # at 300 steps accuracy no longer moves
            warnings.filterwarnings(
                "ignore", "The number of unique classes"
            )  # few labels are meant to be few
            self.model.fit(x_ND, y_N, times_N)

    def predict(self, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        p_NC = np.zeros((len(x_ND), self.classes))
        p_NC[:, self.model.classes_] = self.model.predict_proba(x_ND)  # a class without a sample has none
        return p_NC


class Attentive(nn.Module):
    """A learned query attends to the places of a feature map, with one head; a linear layer classifies what it gathers.

    After the attentive probe of V-JEPA (Bardes et al. 2024, section 4), without its MLP.
    """

    def __init__(self, token: int, classes: int) -> None:
        super().__init__()
        self.token = token
        self.query = nn.Parameter(torch.randn(1, 1, token) / token**0.5)
        self.attention = nn.MultiheadAttention(token, 1, batch_first=True)
        self.last = nn.Sequential(nn.LayerNorm(token), nn.Linear(token, classes))

    def forward(self, x_ND: Tensor) -> Tensor:
        places = x_ND.unflatten(1, (-1, self.token))
        gathered, _ = self.attention(self.query.expand(len(x_ND), -1, -1), places, places, need_weights=False)
        scores: Tensor = self.last(gathered[:, 0])
        return scores


class ByAdam:
    """A small network, by its head; the weights are drawn as torch does, and trained by Adam."""

    def __init__(self, D: int, classes: int, head: Head, device: torch.device | str) -> None:
        if head.token:
            layers: nn.Module = Attentive(head.token, classes)
        else:
            hidden = nn.Linear(D, head.hidden), nn.ReLU(), nn.Dropout(head.dropout)
            layers = nn.Sequential(*hidden, nn.Linear(head.hidden, classes))
        self.layers, self.device = layers.to(device), device

    @torch.no_grad()
    def predict(self, x_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        self.layers.eval()
        parts = torch.from_numpy(np.asarray(x_ND, dtype=np.float32)).split(8192)
        p_NC = torch.cat([self.layers(part.to(self.device)).double().softmax(1).cpu() for part in parts])
        self.layers.train()
        return p_NC.numpy()


def train_and_test(
    train: Features,
    test: Features,
    labelled: Labelled,
    head: Head,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Trained:
    """Train on the clips of the training videos, predict the test videos as the mean of their clips.

    Features are standardised by the training part's mean and deviation (batch norm without its affine map: TCP section
    4.2.3). A fifth of the training videos chooses the strength of regularisation, and the epoch; then all of them train.
    """
    videos = np.unique(train.row)
    held = np.isin(train.row, videos[labelled.held_out(videos, seed)])
    y = labelled.labels[train.row]

    def judge(probe: Probe, x_ND: NDArray) -> tuple[float, float]:
        rows, p_MC = video_means(train.row[held], probe.predict(x_ND))
        truth = labelled.labels[rows]
        likelihood = np.log(np.maximum(p_MC[np.arange(len(truth)), truth], 1e-12)).mean()
        return float(metrics.hits(p_MC, truth).mean()), float(likelihood)

    predict, chosen = fit(train.x, y, held, len(labelled.classes), head, judge, seed=seed, device=device)
    rows, p_MC = video_means(test.row, predict(test.x))
    return Trained(rows, p_MC, chosen)


def fit(
    x_ND: NDArray[np.float32],
    y_N: NDArray[np.int64],
    held_N: NDArray[np.bool_],
    classes: int,
    head: Head,
    judge: Callable[[Probe, NDArray], tuple[float, float]],
    *,
    seed: int,
    device: torch.device | str = "cpu",
    times_N: NDArray[np.int64] | None = None,
) -> tuple[Callable[[NDArray], NDArray[np.float64]], dict[str, Any]]:
    """Features → probabilities, by the probe trained on all samples with what `judge`, of one trained without the
    held-out samples and their features, puts first: higher is better, the second number decides among equals.

    times_N: how often a sample counts. Without held-out samples the middle strength and the last epoch are taken.
    """
    from sklearn.preprocessing import StandardScaler

    times = np.ones(len(y_N), np.int64) if times_N is None else times_N
    scaler = StandardScaler().fit(x_ND)
    x_ND = scaler.transform(x_ND).astype(np.float32)
    kept, best = ~held_N, None
    fitting = _Fitting(head, classes, seed, device)
    if held_N.any():
        for probe, chosen in _candidates(x_ND[kept], y_N[kept], times[kept], fitting):
            found = judge(probe, x_ND[held_N])
            if best is None or found > best[0]:
                best = found, chosen
    by_adam = head.hidden or head.token
    middle = {"C": STRENGTHS[2]} if not by_adam else {"weight_decay": DECAYS[1], "epochs": head.epochs}
    (top1, _), chosen = best or ((float("nan"), 0.0), middle)
    *_, (probe, _) = _candidates(x_ND, y_N, times, fitting, chosen)
    return lambda x: probe.predict(scaler.transform(x).astype(np.float32)), chosen | {"validation_top1": top1}


def _candidates(
    x: NDArray, y: NDArray, times: NDArray, fitting: "_Fitting", chosen: dict[str, Any] | None = None
) -> Iterator[tuple[Probe, dict[str, Any]]]:
    """Probes trained on samples, and what makes each: of those by Adam, every fifth epoch of Adam with each weight decay.

    chosen: what makes the last of them, where it is known.
    """
    head, classes = fitting.head, fitting.classes
    if not head.hidden and not head.token:
        for strength in [chosen["C"]] if chosen else STRENGTHS:
            yield Linear(x, y, classes, strength, times), {"C": strength}
        return
    every = np.repeat(np.arange(len(y)), times)
    samples, target = (torch.from_numpy(one[every]).to(fitting.device) for one in (x, y))
    for decay in [chosen["weight_decay"]] if chosen else DECAYS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fitting.seed)
            probe = ByAdam(x.shape[1], classes, head, fitting.device)
            optimizer = torch.optim.Adam(probe.layers.parameters(), lr=head.lr, weight_decay=decay)
            shuffle = torch.Generator().manual_seed(fitting.seed)
            last = chosen["epochs"] if chosen else head.epochs
            for epoch in range(1, last + 1):
                for part in (
                    torch.randperm(len(target), generator=shuffle).to(target.device).split(head.batch_size)
                ):
                    optimizer.zero_grad()
                    F.cross_entropy(probe.layers(samples[part]), target[part]).backward()
                    optimizer.step()
                if epoch % 5 == 0 or epoch == last:
                    yield probe, {"weight_decay": decay, "epochs": epoch}


def run_probes(
    context: Context,
    labelled: Labelled,
    splits: list[Split],
    features: tuple[Features, Features],
    head: Head,
    name: str,
    share: float | None = None,
) -> list[Outcome]:
    """A probe for each split and seed; share: of the labels, chosen again with each seed."""
    device, first = context.compute.accelerator.device, context.settings.seed
    seeds = range(first, first + context.settings.seeds)
    outcomes = []
    with tqdm(
        total=len(splits) * len(seeds), desc=f"probes of {name}", unit="probe", dynamic_ncols=True
    ) as bar:
        for split in splits:
            test, runs = features[1].of(split.test), []
            for seed in seeds:
                part = split if share is None else with_fraction(split, labelled, share, seed)
                train = features[0].of(part.train)
                runs.append(train_and_test(train, test, labelled, head, seed=seed, device=device))
                bar.update()
            outcomes.append(Outcome.of(split, runs))
    return outcomes
