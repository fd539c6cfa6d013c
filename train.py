#!/usr/bin/env python3
"""Pretrain a video encoder without labels.

    accelerate launch train.py --objective vdim                       the demo set, rendered on first use
    accelerate launch train.py --objective vdim --data data/k400 --split train
    accelerate launch train.py --objective memdpc --data data/k400 data/oops --split train
    accelerate launch train.py --resume runs/vdim                     go on where the run stopped, with its own flags
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 train.py      two processes on a CPU

The paper's hyper-parameters are the defaults. Without --data and without a GPU, smaller ones that two CPU cores
train in minutes are used instead (--small, --no-small). A run leaves in its folder: metrics.jsonl and what --tracker
names, run.json (how it was started), first_batch.png (what the model is fed), checkpoints/, and at its end
encoder.safetensors with config.json.
"""

import logging
import os
import shutil
import sys
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from tqdm import tqdm

import objectives
import pipelines
from evaluation.retrieval import Knn
from objectives import checkpoint
from objectives.base import Objective
from objectives.checkpoint import metadata
from objectives.command import data_once, parse, small_changes
from shards import InputError
from shards.atomic import atomic_write
from shards.schema import QUARANTINE
from training.log import check_trackers, record_start
from training.metrics import Validation
from training.processes import StopSignals, end_with_launcher, ended, on_main, writing
from training.run import Run, data_remarks, init_from, init_remark, open_run
from training.settings import Settings, as_flags, with_own_flags
from training.speed import settle
from training.trainer import Trainer, headline


def main(argv: list[str]) -> None:
    end_with_launcher()
    with StopSignals() as stop:
        settings, config = parse(with_own_flags(data_once(argv)), Settings, __doc__ or "", "train.py")
        accelerator = start(settings)
        run = open_run(settings, config, accelerator.mixed_precision)
        speed = settle(settings, objectives.get(settings.objective).view_spec(config), run.dataset)
        torch.manual_seed(settings.seed)
        objective = objectives.get(settings.objective)(config)
        if settings.init_from and not run.resumed:
            init_from(objective, settings.init_from)
        asked = {Validation: settings.val_split, Knn: settings.knn_every}
        evaluators = [kind(settings, run, accelerator, objective, speed) for kind in asked if asked[kind]]
        with Trainer(settings, run, accelerator, objective, speed, stop, evaluators) as trainer:
            on_main(lambda: save_flags(settings, run, objective))
            on_main(lambda: record_start(settings, run, argv, trainer.step))
            if accelerator.is_main_process:
                tqdm.write(announce(settings, run, trainer))
            last = trainer.run()
            on_main(lambda: export(run, trainer))
        if accelerator.is_main_process:
            tqdm.write(conclude(settings, run, last))
        accelerator.end_training()


def start(settings: Settings) -> Accelerator:
    """The processes meet. Raises InputError for an option that this machine cannot have."""
    for plugin in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{plugin}"):
            raise InputError(
                f"ACCELERATE_USE_{plugin}: train.py keeps a whole model on each GPU (DistributedDataParallel); "
                f"run accelerate launch without {plugin}, or `accelerate config` again"
            )
    check_trackers(settings.tracker)
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    for flag, asked in (
        ("--sync-bn", settings.sync_bn),
        ("--mixed-precision fp16", settings.mixed_precision == "fp16"),
    ):
        if cpu and asked:
            raise InputError(f"{flag}: needs a GPU, and the run is on a CPU; leave it out")
    if settings.torch_compile and cpu and not shutil.which(os.environ.get("CXX", "g++")):
        raise InputError("--torch-compile: needs a C++ compiler on a CPU; install g++, or leave it out")
    state = PartialState(cpu=cpu)
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING if state.is_main_process else logging.ERROR
    )
    # each process meets bad videos of its own
    logging.getLogger(pipelines.__name__).setLevel(logging.WARNING)
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            settings.accumulate, sync_with_dataloader=False
        ),
    )


def announce(settings: Settings, run: Run, trainer: Trainer) -> str:
    spec, objective = trainer.spec, trainer.state.objective
    counts = run.dataset.counts(run.rows)
    each = f" ({' + '.join(map(str, counts))})" if len(counts) > 1 else ""
    lines = [f"resumed from {run.resumed}, step {trainer.step}"] if run.resumed else []
    lines += [
        f"{settings.objective} on {run.dataset.source}: {len(run.rows)} videos{each}, {settings.steps} steps of "
        f"{run.identity['global_batch'] * settings.accumulate} clips ({spec.views} views of {spec.frames} frames, "
        f"{spec.size}²), {sum(p.numel() for p in objective.parameters()) / 1e6:.1f} M parameters"
    ]
    if settings.small:
        changed = small_changes(type(objective))
        lines += [
            f"--small, where no other flag says otherwise (--no-small gives the paper's settings): {changed}"
        ]
    if settings.init_from and not run.resumed and (remark := init_remark(objective, settings.init_from, run)):
        lines += [remark]
    if remark := batch_remark(settings, run, type(objective), objective.config):
        lines += [remark]
    # without a stride in its dataset.json any --stride is as good, and nothing is said
    noted = "stride" in run.dataset.members[0].info["settings"]
    lines += data_remarks(objective, spec.size, run.dataset, {} if noted else {"fps": run.identity["fps"]})
    every = run.dataset.select(split=settings.trained_split, min_frames=settings.min_frames)
    if short := int((run.dataset.column("num_frames")[every] < spec.span).sum()):
        fate = {
            "error": "are left out (--padding repeat_last keeps them)",
            "repeat_last": f"repeat their last frame (--min-frames {spec.span} leaves them out)",
            "wrap": f"start over (--min-frames {spec.span} leaves them out)",
        }[spec.padding]
        lines += [f"{short} videos are shorter than a clip's {spec.span} frames and {fate}"]
    for one in run.dataset.members:
        if bad := len(one.quarantined()):
            lines += [f"{bad} videos are in quarantine: {one.path / QUARANTINE}"]
    if remark := trainer.loader.backend.describe():
        lines += [remark]
    return "\n".join([*lines, trainer.speed.origin])


def batch_remark(settings: Settings, run: Run, method: type[Objective], config: Any) -> str:
    """One line where a step has more or fewer clips than the recipe's, whose learning rate is used; else ""."""
    recipe, usual = (
        (method.small_recipe, method.small()) if settings.small else (method.recipe, method.Config())
    )
    clips = run.identity["global_batch"] * settings.accumulate
    if clips == recipe.batch_size or config.lr != usual.lr:
        return ""
    return (
        f"a step has {clips} clips, and --lr {config.lr:g} is meant for the recipe's {recipe.batch_size}: "
        f"in proportion it would be {config.lr * clips / recipe.batch_size:.2g}"
    )


def save_flags(settings: Settings, run: Run, objective: Objective) -> None:
    """Write OUTPUT/config.json, which --resume and --config read."""
    with writing(run.output / checkpoint.CONFIG):
        checkpoint.save_config(run.output, objective, run.identity, as_flags(settings))


def export(run: Run, trainer: Trainer) -> None:
    """Write what downstream use needs: the encoder's weights, the averaged ones with --ema, and its config."""
    state, path = trainer.state, run.output / "encoder.safetensors"
    objective = state.average or state.objective
    with (
        writing(path, advice="the checkpoints are whole: make room, and --resume writes it"),
        atomic_write(path) as temporary,
    ):
        checkpoint.save_weights(temporary, objective.encoder, metadata(state.objective, trainer.step))


def conclude(settings: Settings, run: Run, last: dict[str, float] | None) -> str:
    data = f" --data {settings.data[0]}" if settings.data else ""
    lines = [
        f"encoder: {run.output / 'encoder.safetensors'} (its config: {run.output / 'config.json'})",
        f"next: evaluate.py linear --checkpoint {run.output}{data}, on labelled videos, says what it learned; "
        f"train.py --resume {run.output} --steps {2 * settings.steps} trains on",
    ]
    return "\n".join([headline(last), *lines] if last else lines)


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
