"""The flags of train.py that do not belong to an objective, and those that need not be given.

The latter are a resumed run's own, and those of --config. They are put in front of the flags that were given, which
win; so they pass the same checks.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from objectives import checkpoint
from pipelines.backends import DecodeWith, Device
from shards import InputError, at_least
from shards.documents import TEXT, AnyOf, Each, Is, one_line_of, problem, read_bytes

NEWEST = "newest"
_NOT_KEPT = ("resume", "config", "output", "profile")
_VALUE = Is("a value of a flag", lambda one: one is None or isinstance(one, str | bool | int | float))
_FLAGS = Each(TEXT, AnyOf([_VALUE], _VALUE))


@dataclass(frozen=True)
class Settings:
    """A run: on what data, for how long, and where it goes. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method. `--objective NAME --help` shows its flags."""
    data: tuple[Path, ...] | None = None
    """A data set made by tools/make_shards.py, in a folder or behind s3://, gs://, https://; or a folder of videos, whose
    shards are made in the cache folder on first use; the rendered demo set by default. Several are trained on as one."""
    cache_gb: float | None = None
    """Size of the local cache of a remote data set, GB; 0: none, each clip is requested; $SLIPSTREAM_CACHE_GB, else 100, by default."""
    split: str | None = None
    """Use only the rows of this split: train, or, where there are several, split1:train. By default all rows, and of the
    demo set train."""
    val_split: str | None = None
    """Validate on this split, without training-time augmentation; methods whose paper does so lower their learning
    rate where the loss on it no longer falls."""
    val_every: int = 1000
    """Steps between validations."""
    val_passes: int = 1
    """Clips of each video in a validation, each at another place; more make steadier figures."""
    knn_every: int = 0
    """Steps between reports of how well nearest neighbours tell labelled videos apart; 0 is off. Training sees no label."""
    knn_split: str | None = None
    """The videos that --knn-every classifies by their neighbours among the training videos; by default the training videos."""
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
    """Continue the run in this folder, from its newest checkpoint and with its own flags. Without a value it is that of
    --output, which begins if there is none, or else the newest run of this objective. Flags on the command line win where
    they change nothing of what is learned, such as --steps, --device and --keep; any other that differs is an error."""
    config: Path | None = None
    """A YAML file of flags (`lr: 0.001`), or a run's config.json. Flags on the command line win."""
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
    """Decoding threads of this process; what --autotune found, else its share of the cores, or eight with NVDEC, by default."""
    prefetch: int | None = None
    """Batches made ahead; what --autotune found, else 2, by default."""
    cache: Literal["host", "gpu"] | None = None
    """Keep decoded videos in the computer's (host) or in GPU memory, as many as fit; views stay what they are."""
    cache_gib: float = 16.0
    """Most memory that --cache takes, GiB a process. (--cache-gb is the disk that keeps a remote data set's files.)"""
    clips_per_decode: int = 1
    """Clips of one video in a batch, drawn apart and decoded together. It changes the negatives: see docs/guides/speed.md."""
    decode_with: DecodeWith = "auto"
    """Where the CPU decodes: in processes, one for each of --threads, which do not wait for Python's lock, or in threads,
    which need no start and no memory of their own. auto takes processes where there are four cores or more."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "accumulate", "val_every", "val_passes", "checkpoint_every")
        at_least(self, 1, "keep", "log_every", "clips_per_decode", "hang_s", "threads")
        at_least(self, 0, "clip_norm", "knn_every", "profile", "prefetch")
        if self.data == ():
            raise InputError("--data: names no data set")
        if self.val_split is not None and self.trained_split in (None, self.val_split):
            raise InputError(
                f"--val-split {self.val_split}: name another --split, or the run trains on what it validates on"
            )
        if not 0 <= self.ema < 1:
            raise InputError(f"--ema {self.ema}: must be at least 0 and below 1; 0.999 is usual")

    @property
    def trained_split(self) -> str | None:
        """The split that is trained on: of the demo set "train" by default, else everything."""
        return self.split or ("train" if self.data is None else None)


def with_own_flags(argv: list[str]) -> list[str]:
    """argv with the flags of --config, and of the run that --resume names, in front.

    `--resume` without a value becomes `--resume newest`: the run of --output, or the newest one of the objective.
    Raises InputError where the file or the run cannot be read.
    """
    argv = [
        f"--resume={NEWEST}" if word == "--resume" and after.startswith("-") else word
        for word, after in pairwise([*argv, "--"])
    ]
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--resume", "--config", "--output", "--objective", "--batch-size"):
        early.add_argument(flag)
    known = early.parse_known_args(argv)[0]
    own = as_argv(_read(Path(known.config))) if known.config else []
    known = early.parse_known_args([*own, *argv])[0]
    if not known.resume:
        return [*own, *argv]
    if known.resume != NEWEST:
        run = Path(known.resume)
        if not (run / checkpoint.CONFIG).is_file():
            raise InputError(
                f"--resume {run}: holds no run; its flags with --output {run} --resume begin one there"
            )
    elif known.output:
        run = Path(known.output)
    else:
        runs = numbered_runs(known.objective or Settings.objective)
        run = runs[max(0, next(number for number, one in enumerate(runs) if not one.exists()) - 1)]
    if not (run / checkpoint.CONFIG).is_file():
        return [*own, *argv]
    flags = _read(run / checkpoint.CONFIG)
    objective = checkpoint.class_of(run, flags).name
    if known.objective not in (None, objective):
        raise InputError(
            f"--resume: {run} is a run of --objective {objective}, not {known.objective}; leave the flag out"
        )
    if not known.batch_size:  # the global batch is kept, where the processes that there are now can share it
        batch = checkpoint.read_config(run)["settings"].get("global_batch") or 0
        own_batch, rest = divmod(batch, int(os.environ.get("WORLD_SIZE", "1")))
        flags |= {"batch-size": own_batch} if own_batch and not rest else {}
    return [*own, *as_argv(flags), f"--output={run}", *argv]


def numbered_runs(objective: str) -> list[Path]:
    """runs/NAME, runs/NAME-2, …"""
    return [Path("runs") / (objective if i == 1 else f"{objective}-{i}") for i in range(1, 10_000)]


def _read(path: Path) -> dict[str, Any]:
    """The flags in a YAML file, or in a run's config.json."""
    fix = "give a YAML file of flags, such as `lr: 0.001`, or a run's config.json"
    try:
        content = yaml.safe_load(read_bytes(path, fix).decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {one_line_of(error)}; {fix}") from error
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        own, config = content.get("flags"), content["config"]
        own = own if isinstance(own, dict) else {}
        if gone := own.keys() - {one.name for one in fields(Settings)}:
            raise InputError(
                f"{path}: train.py has no flag {one_line_of(min(map(str, gone)))}; remove it from there, or use the version "
                "that wrote it (its commit is in run.json)"
            )
        content = own | config | {"objective": content.get("objective")}
    if found := problem(content, _FLAGS):
        raise InputError(f"{path}: {found}; {fix}")
    return {str(name).replace("_", "-"): value for name, value in content.items()}


def as_argv(flags: dict[str, Any]) -> list[str]:
    """{"lr": 0.1, "ema": None, "small": True, "paces": [1, 2]} → --lr=0.1 --small --paces 1 2."""
    argv: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        elif value is not None:
            argv.append(f"--{name}={value}")
    return argv


def as_flags(settings: Settings) -> dict[str, Any]:
    """The settings that a run notes in its config.json: what `with_own_flags` reads there, as JSON has it."""
    flags = {name: value for name, value in asdict(settings).items() if name not in _NOT_KEPT}
    # the run may be resumed from another folder
    flags["data"] = settings.data and [one.resolve() if one.exists() else one for one in settings.data]
    if settings.init_from is not None and settings.init_from.exists():
        flags["init_from"] = settings.init_from.resolve()
    return dict(json.loads(json.dumps(flags, default=str)))
