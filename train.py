#!/usr/bin/env python3
"""Pretrain a video encoder without labels.

    accelerate launch train.py --objective vdim                       the demo set, rendered on first use
    accelerate launch train.py --objective vdim --data data/k400 --split train
    accelerate launch train.py --objective vdim --data data/k400 --resume      go on where the run stopped
    ACCELERATE_USE_CPU=true torchrun --nproc-per-node 2 train.py      two processes on a CPU

The paper's hyper-parameters are the defaults. Without --data and without a GPU, smaller ones that two CPU cores
train in minutes are used instead (--small, --no-small). A run leaves in its folder: metrics.jsonl, TensorBoard
logs, first_batch.png (what the model is fed), checkpoints/, and at its end encoder.safetensors with config.json.
"""

import logging
import os
import shutil
import sys
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env
from tqdm import tqdm

import objectives
import pipelines
from evaluation.knn import Knn
from objectives import checkpoint
from objectives.command import parse
from objectives.origin import metadata
from shards import InputError
from shards.atomic import atomic_write
from shards.schema import QUARANTINE
from training.processes import StopSignals, ended, on_main
from training.run import Run, init_from, open_run
from training.settings import Settings
from training.speed import settle, uneven_sides
from training.trainer import Trainer, headline


def main(argv: list[str]) -> None:
    with StopSignals() as stop:
        settings, config = parse(argv, Settings, __doc__, "train.py")
        accelerator = start(settings)
        run = open_run(settings, config, accelerator.mixed_precision)
        speed = settle(settings, objectives.get(settings.objective).view_spec(config), run.dataset)
        torch.manual_seed(settings.seed)
        objective = objectives.get(settings.objective)(config)
        if settings.init_from and not run.resumed:
            init_from(objective, settings.init_from)
        on_main(lambda: checkpoint.save_config(run.output, objective, run.identity))
        evaluators = [Knn(settings, run, accelerator, objective, speed)] if settings.knn_every else []
        with Trainer(settings, run, accelerator, objective, speed, stop, evaluators) as trainer:
            if accelerator.is_main_process:
                tqdm.write(announce(settings, run, trainer))
            last = trainer.run()
            on_main(lambda: export(run, trainer))
        if accelerator.is_main_process:
            tqdm.write(conclude(run, last))
        accelerator.end_training()


def start(settings: Settings) -> Accelerator:
    """The processes meet. Raises InputError for an option that this machine cannot have."""
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
    logging.getLogger(pipelines.__name__).setLevel(
        logging.WARNING
    )  # each process meets bad videos of its own
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            settings.accumulate, sync_with_dataloader=False
        ),
    )


def announce(settings: Settings, run: Run, trainer: Trainer) -> str:
    spec, objective = trainer.spec, trainer.state.objective
    lines = [f"resumed from {run.resumed}, step {trainer.step}"] if run.resumed else []
    lines += [
        f"{settings.objective} on {run.dataset.path}: {len(run.rows)} videos, {settings.steps} steps of "
        f"{run.identity['global_batch'] * settings.accumulate} clips ({spec.views} views of {spec.frames} frames, "
        f"{spec.size}²), {sum(p.numel() for p in objective.parameters()) / 1e6:.1f} M parameters"
    ]
    if settings.small:
        changed = differences(objective.config)
        lines += [f"small settings, sized for a CPU (--no-small gives the paper's): {changed}"]
    if spec.padding == "error":
        every = run.dataset.select(split=settings.trained_split, min_frames=settings.min_frames)
        short = len(every) - len(run.rows)
        if short:
            lines += [
                f"{short} videos are shorter than a clip's {spec.span} frames and left out (--padding repeat_last keeps them)"
            ]
    if bad := len(run.dataset.quarantined()):
        lines += [f"{bad} videos are in quarantine: {run.dataset.path / QUARANTINE}"]
    if remark := uneven_sides(trainer.speed, run):
        lines += [remark]
    if remark := trainer.loader.backend.describe():
        lines += [remark]
    return "\n".join([*lines, trainer.speed.origin])


def differences(config: Any) -> str:
    paper = type(config)()
    return ", ".join(f"{k} {v}" for k, v in asdict(config).items() if v != getattr(paper, k))


def export(run: Run, trainer: Trainer) -> None:
    """Write what downstream use needs: the encoder's weights, the averaged ones with --ema, and its config."""
    state = trainer.state
    objective = state.average or state.objective
    with atomic_write(run.output / "encoder.safetensors") as aside:
        checkpoint.save_weights(aside, objective.encoder, metadata(state.objective, trainer.step))


def conclude(run: Run, last: dict[str, float] | None) -> str:
    weights = f"encoder: {run.output / 'encoder.safetensors'} (its config: {run.output / 'config.json'})"
    if not last:
        return weights
    return f"{headline(last)}\n{weights}"


if __name__ == "__main__":
    sys.exit(ended(main, sys.argv[1:]))
