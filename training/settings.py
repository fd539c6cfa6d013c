"""The flags of train.py that do not belong to an objective."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from objectives.base import Recipe
from pipelines.backends import Device
from shards import InputError, at_least


@dataclass(frozen=True)
class Settings:
    """A run: on what data, for how long, and where it goes. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method. `--objective NAME --help` shows its flags."""
    data: Path | None = None
    """A data set made by tools/make_shards.py, a folder or s3://, gs://, https://; the rendered demo set by default."""
    cache_gb: float | None = None
    """Size of the local cache of a remote data set, GB; 0: none, each clip is requested; $SLIPSTREAM_CACHE_GB, else 100, by default."""
    split: str | None = None
    """Use only the rows of this split: train, or, where there are several, split1:train."""
    val_split: str | None = None
    """Validate on this split, without training-time augmentation; methods whose paper does so lower their learning
    rate where the loss on it no longer falls."""
    val_every: int = 1000
    """Steps between validations."""
    val_passes: int = 1
    """Times that each video is looked at in a validation, with other draws each time; more make steadier figures."""
    knn_every: int = 0
    """Steps between reports of how well nearest neighbours tell labelled videos apart; 0 is off. Training sees no label."""
    knn_split: str | None = None
    """The videos that --knn-every classifies, by their neighbours among those that are trained on; the latter by default."""
    min_frames: int = 1
    """Leave out shorter videos. What happens to a video shorter than a clip: --padding."""
    steps: int = 0
    """Optimizer steps, counted from the run's beginning."""
    batch_size: int = 0
    """Clips a process and step (times --accumulate)."""
    output: Path | None = None
    """The run's folder; runs/OBJECTIVE, or runs/OBJECTIVE-2 …, by default."""
    seed: int = 0
    """Of the weights and of all random choices."""
    init_from: Path | None = None
    """Start from the weights of this run or checkpoint, such as an earlier stage of a curriculum; of another method's,
    from those of its encoder."""
    resume: str | None = None
    """Go on with this run's folder, from its newest checkpoint and with its own flags. Without a value, with that of
    --output, where one is begun if there is none yet, or with the newest run of this objective. Flags given besides count
    where they change nothing of what is learned, such as --steps, --device and --keep; others are refused by name."""
    config: Path | None = None
    """A YAML file of flags (`lr: 0.001`), or a run's config.json. Flags that are given count more."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    device: Device = "auto"
    """Where videos are decoded and augmented: all on the GPU (NVDEC), decoded on the CPU, or all on the CPU.
    auto is what tools/bench_loader.py --autotune found for this machine and method; else, with a GPU, hybrid where there
    are eight cores or more for it, and gpu where there are fewer."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of the model's arithmetic; accelerate launch's by default."""
    channels_last: bool = True
    """Keep weights and views in channels-last memory order."""
    torch_compile: bool = False
    """Compile the objective with torch.compile; the first step then takes minutes."""
    sync_bn: bool = False
    """Batch norm over the clips of all processes (SyncBatchNorm; GPUs only)."""
    ema: float = 0.0
    """Keep an average of the weights with this decay, such as 0.999, and export it; 0 is off."""
    accumulate: int = 1
    """Batches whose gradients are averaged in one step. Contrastive negatives stay those of one batch."""
    clip_norm: float = 0.0
    """Scale the gradient down to this norm; 0 is off."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step, and SIGTERM or Ctrl-C, make one too."""
    keep: int = 3
    """Newest whole checkpoints to keep."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl; each holds means since the last."""
    tracker: tuple[str, ...] = ("tensorboard",)
    """Where the lines go as well: tensorboard, wandb, mlflow, trackio, any other that Accelerate knows, or a GeneralTracker
    of your own as module:Class; several, or none."""
    profile: int = 0
    """Steps to profile, from the third on, into OUTPUT/profile.json.gz (torch.profiler; NVTX ranges on a GPU)."""
    hang_s: float = 600.0
    """With several processes: seconds without any progress after which a run is ended, with the name of the process that
    hangs. A process that dies is noticed within 30 s."""
    threads: int | None = None
    """Decoding threads of this process; what --autotune found, else its share of the cores, by default."""
    prefetch: int | None = None
    """Batches made ahead; what --autotune found, else 2, by default."""
    cache: Literal["host", "gpu"] | None = None
    """Keep decoded videos in the computer's (host) or in GPU memory, as many as fit; views stay what they are."""
    cache_gib: float = 16.0
    """Most memory that --cache takes, GiB a process. (--cache-gb is the disk that keeps a remote data set's files.)"""
    clips_per_decode: int = 1
    """Clips of one video in a batch, drawn apart and decoded together. It changes the negatives: see docs/guides/speed.md."""
    cpu_share: float | Literal["auto"] = 0.0
    """With --device gpu, the share of the videos that the CPU decodes beside NVDEC, 0 to 1; auto: as the rates that
    tools/bench_loader.py --autotune found for both."""
    decode_with: Literal["auto", "processes", "threads"] = "auto"
    """Where the CPU decodes: in processes, one for each of --threads, which do not wait for Python's lock, or in threads,
    which need no start and no memory of their own. auto takes processes where there are four cores or more."""
    nvdec_threads: int = 8
    """Threads that feed NVDEC, with --device gpu; an H100 has seven decoders."""

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "steps",
            "batch_size",
            "accumulate",
            "val_every",
            "val_passes",
            "checkpoint_every",
            "keep",
            "log_every",
            "clips_per_decode",
            "nvdec_threads",
            "hang_s",
            *(["threads"] if self.threads is not None else []),
        )
        if self.val_split is not None and self.trained_split in (None, self.val_split):
            raise InputError(
                f"--val-split {self.val_split}: name another --split, or the run trains on what it validates on"
            )
        at_least(
            self, 0, "clip_norm", "knn_every", "profile", *(["prefetch"] if self.prefetch is not None else [])
        )
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema {self.ema}: must be at least 0 and below 1; 0.999 is usual")

    @property
    def trained_split(self) -> str | None:
        """The split that is trained on: of the demo set "train" by default, else everything."""
        return self.split or ("train" if self.data is None else None)

    @classmethod
    def for_recipe(cls, recipe: Recipe, **fields: Any) -> "Settings":
        return cls(steps=recipe.steps, batch_size=recipe.batch_size, **fields)
