"""The flags of evaluate.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pipelines.backends import Device
from shards import InputError, at_least


@dataclass(frozen=True)
class Settings:
    """What is evaluated, on what, and where it goes."""

    checkpoint: str
    """A run's or checkpoint's folder; random:NAME (an objective) or random:FOLDER (a checkpoint's network) for fresh
    weights; torchvision:NAME for its supervised ones."""
    data: Path | None = None
    """A labelled data set made by tools/make_shards.py, or a folder of videos in class folders; the rendered demo set by default."""
    split: tuple[str, ...] = ()
    """Splits to evaluate on: 1, 2, 3 or all of UCF101 and HMDB51; the table's own column by default."""
    folds: int = 0
    """Instead of a split: so many parts of whole groups, each of which is the test part once."""
    groups: str = ""
    """FILE.csv:COLUMN, the group of each video (first column: its file or key); videos of a group stay together.
    By default UCF101's source videos (v_NAME_g01_c…)."""
    output: Path | None = None
    """The result's folder; runs/evaluation/PROTOCOL-CHECKPOINT-DATA-SPLIT by default."""
    seeds: int = 3
    """Repetitions of what is random in the protocol; the encoder's weights stay."""
    baselines: bool = True
    """Evaluate random weights of the same network, hand-made features, and the videos' size and length too."""
    random_draws: int = 5
    """Networks of random weights that are evaluated as one baseline."""
    layer: str = ""
    """A module of the network, such as encoder.layer4 (for Pace p4, p5), instead of the method's own feature."""
    pool: Literal["mean", "std", "both"] = "mean"
    """What of the --layer's output: its mean over space, time and views; its standard deviation over time and views, averaged
    over space, which is how much it changes; or both, side by side."""
    windows: int = 0
    """Windows spread evenly over each video, instead of the method's own layout."""
    crops: Literal[0, 1, 5, 10] = 0
    """Crops of a test window: the middle; with the corners 5; mirrored too 10. 0 is the method's own."""
    subsequences: int = 0
    """VDIM's K, 32 frames each (the paper: 4, for HMDB51 2)."""
    permute_labels: bool = False
    """A check of the protocol: shuffle the test labels; the result must be chance."""
    batch_size: int = 16
    """Windows in a batch of the frozen network."""
    device: Device = "auto"
    """Where videos are decoded: all on the GPU (NVDEC), decoded on the CPU, or all on the CPU."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of the network's arithmetic; accelerate launch's by default."""
    threads: int | None = None
    """Decoding threads of this process; as many as its cores, or eight with NVDEC, by default."""
    cache: Path | None = None
    """Where features are kept; $SLIPSTREAM_CACHE/features (~/.cache/slipstream/features) by default."""
    small: bool = False
    """random:NAME: the objective's CPU-sized network; so it is where there is neither --data nor a GPU, too."""
    seed: int = 0
    """Of everything random: first of --seeds, and of random weights."""

    def check(self) -> None:
        """Raises InputError for what cannot be. Not in __post_init__, whose errors tyro answers in its own way."""
        at_least(self, 1, "seeds", "batch_size", "threads", "random_draws")
        at_least(self, 0, "folds", "windows", "subsequences", "seed")
        if self.folds and self.split:
            raise InputError("--folds and --split: give one of the two")
        if self.groups and ":" not in self.groups:
            raise InputError(f"--groups {self.groups}: give FILE.csv:COLUMN")

    @property
    def grouped(self) -> tuple[Path, str] | None:
        file, _, column = self.groups.rpartition(":")
        return (Path(file), column) if self.groups else None


@dataclass(frozen=True)
class Linear(Settings):
    """A linear classifier on frozen features."""


@dataclass(frozen=True)
class Nonlinear(Settings):
    """A classifier with one hidden layer on frozen features."""

    hidden: int = 0
    """Width of the hidden layer; 0 is the method's own."""


@dataclass(frozen=True)
class Attentive(Settings):
    """A classifier that attends to the places of a frozen feature map: a learned query, one head, a linear layer. Hand-made
    features have no map: theirs is the linear classifier."""

    layer: str = "encoder"
    """A module of the network whose output is a map, such as encoder or encoder.layer3."""
    pool: tyro.conf.Suppress[Literal["places"]] = "places"  # type: ignore[assignment]


@dataclass(frozen=True)
class Retrieval(Settings):
    """R@k: is one of a test video's k nearest training videos of its class? By cosine."""

    k: tuple[int, ...] = (1, 5, 10, 20, 50)
    """Neighbours."""
    centre: bool = False
    """Subtract the training part's mean feature first."""
    seeds: int = 1
    """Nothing in retrieval is random: more repeat it."""


@dataclass(frozen=True)
class Embed(Settings):
    """Features to a file, for use elsewhere."""

    to: Path = Path("features.parquet")
    """A .parquet file (key, label, start, feature; a row a window), or a .npy file with the keys beside it as .txt."""
    per: Literal["window", "video"] = "video"
    """A feature for each window, or each video's mean."""
    part: str | None = None
    """Only the videos of this split (train, split1:test, …); all by default."""


@dataclass(frozen=True)
class Supervised(Settings):
    """Supervised training of the network. What is not given is as the method's paper has it."""

    from_scratch: bool = False
    """Train random weights, by the paper's own recipe for them where it has one."""
    freeze: bool = False
    """Train the classifier alone, on augmented clips."""
    steps: int = 0
    """Optimizer steps; 0 is the paper's number, or 200 on the demo set. Milestones move with it."""
    train_batch_size: int = 0
    """Clips a process and step."""
    optimizer: Literal["adam", "sgd"] | None = None
    """SGD has a momentum of 0.9."""
    lr: float | None = None
    """Learning rate."""
    weight_decay: float | None = None
    """Decay of the weights towards 0."""
    pull: float | None = None
    """Decay of the weights towards the pretrained ones."""
    milestones: tuple[int, ...] | None = None
    """Steps at which the learning rate falls."""
    decay_every: int | None = None
    """The learning rate falls after every so many steps too; 0 is never."""
    decay_factor: float | None = None
    """What the learning rate is multiplied by when it falls."""
    dropout: float | None = None
    """Before the last layer."""
    hidden: int | None = None
    """Width of a layer before the last, 0 for none."""
    augment: bool = True
    """Crop, flip and colour training clips as the method does; otherwise they look like test clips."""
    colour: Literal["paper", "none", "jitter"] = "paper"
    """Colour augmentation of training clips; jitter is of brightness, contrast and saturation 0.4, hue 0.2, alike in a
    clip, with probability 0.8, and grey with 0.2."""
    segments: int = 0
    """Segments of a training clip, of methods whose segments are placed independently (TCP)."""
    downsample: int = 1
    """Train and test on every K-th frame, of clips that are K times as long."""
    held_out: float = 0.0
    """Choose the number of steps on this share of the training videos, then train again on all of them for so long."""
    validate_every: int = 0
    """Steps between validations (with --held-out) and between checkpoints; 0 makes 20 of them."""
    patience: int = 0
    """With --held-out: stop after so many validations without a better one; 0 trains to the end."""
    plateau: int = 0
    """With --held-out: the learning rate falls once, after so many validations without a lower loss, instead of at the
    paper's milestones (MemDPC section 5.3); training on everything lowers it at the same step. 0 is off."""
    resume: bool = False
    """Go on where the fine-tuning in --output stopped."""
    seeds: int = 1
    """Repetitions, each with its own head and order."""
    baselines: bool = True
    """Train the same network from scratch too, which takes as long again, and evaluate what needs no network."""

    def check(self) -> None:
        super().check()
        at_least(self, 0, "steps", "train_batch_size", "validate_every", "patience", "plateau", "segments")
        at_least(self, 1, "downsample")
        if not 0 <= self.held_out < 1:
            raise InputError(
                f"--held-out {self.held_out}: give a share of the training videos, 0.2 for instance"
            )
        for name in ("patience", "plateau"):
            if getattr(self, name) and not self.held_out:
                raise InputError(f"--{name}: waits for validations; give --held-out 0.2 too")


@dataclass(frozen=True)
class Finetune(Supervised):
    """Supervised training of the whole network on all labelled training videos, as the method's paper does it.

    The last step is tested, once. With --held-out the number of steps is chosen on a part of the training videos.
    """

    label_fraction: float = 1.0
    """Train on this share of each class's videos."""

    def check(self) -> None:
        super().check()
        if not 0 < self.label_fraction <= 1:
            raise InputError(f"--label-fraction {self.label_fraction}: give a share above 0, at most 1")


@dataclass(frozen=True)
class Fraction(Supervised):
    """Data efficiency: a probe, or the network fine-tuned, with a part of the labels. Only the latter takes its flags."""

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Shares of each class's training videos; each seed has its own, a larger share containing a smaller."""
    probe: Literal["linear", "nonlinear", "finetune"] = "linear"
    """What is trained."""
    seeds: int = 3
    """Repetitions, each with its own videos."""

    def check(self) -> None:
        super().check()
        if any(not 0 < share <= 1 for share in self.fractions):
            raise InputError(f"--fractions {self.fractions}: give shares above 0, at most 1")


@dataclass(frozen=True)
class Curve(Supervised):
    """A protocol for every kept checkpoint of a run: self-supervised against downstream accuracy."""

    protocol: Literal["linear", "retrieval", "finetune"] = "linear"
    """What is done with each checkpoint; retrieval reports R@1. Only finetune takes its flags."""
    seeds: int = 3
    """Repetitions for each checkpoint."""
    baselines: bool = True
    """Evaluate the baselines too, once, with the last checkpoint."""


@dataclass(frozen=True)
class Results:
    """What is made of results."""

    results: tuple[Path, ...]
    """Folders of results (fuse: of linear, nonlinear or finetune), or folders that hold such folders."""

    def check(self) -> None:
        if not self.results:
            raise InputError("--results: name the folders of results that evaluate.py wrote")


@dataclass(frozen=True)
class Fuse(Results):
    """Average the probabilities of two results or more on the same videos: two streams."""

    output: Path = Path("runs/evaluation/fused")
    """The result's folder."""


@dataclass(frozen=True)
class Oops(Settings):
    """Unintentional action: is a time step of a video before, at or after its failure; and where is the failure?

    The data set has failure times (tools/make_shards.py --layout oops) and the splits train and val.
    """


@dataclass(frozen=True)
class OopsFinetune(Supervised):
    """Unintentional action, the whole network trained: three classes from [z_t, ẑ_t] (MemDPC, Table 4).

    The data set is that of oops. Transitions are oversampled.
    """

    def check(self) -> None:
        super().check()
        for name in ("segments", "downsample"):
            if getattr(self, name) != getattr(Supervised, name):
                raise InputError(
                    f"--{name}: of oops-finetune the windows are those of oops, which decide the time steps; leave it out"
                )


@dataclass(frozen=True)
class Table(Results):
    """Results as rows of a table, each beside its baselines; recipes/evaluate.sh makes the results of several runs."""

    markdown: Path | None = None
    """Write it as Markdown."""
    csv: Path | None = None
    """Write it as CSV."""
    latex: Path | None = None
    """Write it as a LaTeX tabular."""
    json: Path | None = None
    """Write it as JSON, with the weights' and the data's sha256 and all settings."""


@dataclass(frozen=True)
class Report(Results):
    """Results as one page: tables beside the papers' numbers, curves, confusion, t-SNE, neighbours' clips."""

    html: Path = Path("report.html")
    """The page."""
    title: str = "Downstream evaluation"
    """Its heading."""
    data: Path | None = None
    """The data set that was evaluated, for clips of nearest neighbours; without it the page has none. A result's own
    word for where its data lies is not followed."""
    run: tuple[Path, ...] = ()
    """Runs of train.py whose pretraining curves are shown."""
