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

import json
import logging
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    GradientAccumulationPlugin,
    broadcast_object_list,
    parse_flag_from_env,
    set_seed,
)
from tqdm import tqdm

import objectives
from objectives import checkpoint
from objectives.base import Recipe
from objectives.command import parse
from pipelines.graph import Placement, choose_placement
from pipelines.loader import Loader
from pipelines.meter import Meter
from pipelines.picture import save_views
from shards import Dataset, InputError, demo


@dataclass(frozen=True)
class Settings:
    """A run: on what data, for how long, and where it goes. The objective's own flags follow further down."""

    objective: str = "vdim"
    """The method. `--objective NAME --help` shows its flags."""
    data: Path | None = None
    """A data set made by tools/make_shards.py; the rendered demo set by default."""
    split: str | None = None
    """Use only the rows of this split."""
    min_frames: int = 1
    """Leave out shorter videos. What happens to a video shorter than a clip: --short."""
    steps: int = 0
    """Optimizer steps, counted from the run's beginning."""
    batch_size: int = 0
    """Clips a process and step (times --accumulate)."""
    output: Path | None = None
    """The run's folder; runs/OBJECTIVE, or runs/OBJECTIVE-2 …, by default."""
    seed: int = 0
    """Of the weights and of everything that is drawn."""
    resume: bool = False
    """Go on from the newest checkpoint of --output (by default of the newest run of this objective)."""
    small: bool = False
    """The objective's CPU-sized settings as defaults: on where there is neither --data nor a GPU."""
    device: Literal["auto", "gpu", "hybrid", "cpu"] = "auto"
    """Where videos are decoded and augmented: all on the GPU (NVDEC), decoded on the CPU, or all on the CPU."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Precision of the model's arithmetic; accelerate launch's by default."""
    accumulate: int = 1
    """Batches whose gradients are averaged in one step. Contrastive negatives stay those of one batch."""
    clip_norm: float = 0.0
    """Scale the gradient down to this norm; 0 is off."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step makes one too."""
    keep: int = 3
    """Newest checkpoints to keep."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl; each holds means since the last."""
    threads: int = os.cpu_count() or 2
    """Decoding threads of this process."""
    prefetch: int = 2
    """Batches made ahead."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep", "log_every", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.clip_norm < 0 or self.prefetch < 0:
            raise InputError("--clip-norm and --prefetch must be at least 0")

    @classmethod
    def for_recipe(cls, recipe: Recipe, **fields: Any) -> "Settings":
        return cls(steps=recipe.steps, batch_size=recipe.batch_size, **fields)


def main(argv: list[str]) -> None:
    settings, config = parse(argv, Settings, __doc__, "train.py")
    state = PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    say = tqdm.write if state.is_main_process else lambda _: None
    logging.basicConfig(
        format="%(message)s", level=logging.WARNING if state.is_main_process else logging.ERROR
    )
    placement = choose_placement(settings.device)
    settings = open_run(settings, state)
    output: Path = settings.output  # type: ignore[assignment]
    resumed = checkpoint.newest(output) if settings.resume else None

    dataset, rows = open_data(settings, objectives.get(settings.objective).view_plan(config), resumed)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            settings.accumulate, sync_with_dataloader=False
        ),
        log_with="tensorboard",
        project_dir=output,
    )
    set_seed(settings.seed)
    objective = objectives.get(settings.objective)(config)
    identity = run_identity(settings, config, dataset, rows, accelerator)
    if accelerator.is_main_process:
        checkpoint.save_config(output, objective, identity)
    trainer = Trainer(settings, identity, accelerator, objective, dataset, rows, placement)
    if resumed:
        trainer.load(resumed)
        say(f"resumed from {resumed}, step {trainer.step}")
    plan = objective.view_plan(config)
    say(
        f"{settings.objective} on {dataset.path}: {len(rows)} videos, {settings.steps} steps of "
        f"{identity['global_batch'] * settings.accumulate} clips ({plan.views} views of {plan.frames} frames, "
        f"{plan.size}²), {sum(p.numel() for p in objective.parameters()) / 1e6:.1f} M parameters"
    )
    if settings.small:
        say("small settings, sized for a CPU (--no-small gives the paper's): " + differences(config))
    try:
        last = trainer.run()
    finally:
        trainer.close()
    if accelerator.is_main_process:
        checkpoint.save_weights(output / "encoder.safetensors", objective.encoder)
        if last:
            chance = last["top1"] / last["chance"]
            say(f"loss {last['loss']:.3f}, top-1 {last['top1']:.3f} ({chance:.1f} × chance)")
        say(f"encoder: {output / 'encoder.safetensors'} (its config: {output / 'config.json'})")
    accelerator.end_training()


def differences(config: Any) -> str:
    paper = type(config)()
    return ", ".join(f"{k} {v}" for k, v in asdict(config).items() if v != getattr(paper, k))


def open_run(settings: Settings, state: PartialState) -> Settings:
    """Settings with an output folder that may be written to: new, or one with something to resume."""
    chosen: list[Any] = [None, None]
    if state.is_main_process:
        try:
            chosen[0] = choose_output(settings)
            (chosen[0] / "checkpoints").mkdir(parents=True, exist_ok=True)
        except InputError as error:
            chosen[1] = str(error)
        except OSError as error:
            chosen[1] = f"--output {error.filename}: {error.strerror}; choose a folder that can be written to"
    broadcast_object_list(chosen)
    if chosen[1]:
        raise InputError(chosen[1])
    return replace(settings, output=chosen[0])


def choose_output(settings: Settings) -> Path:
    name = settings.objective
    if settings.output is None:
        runs = [Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000)]
        free = next(i for i, run in enumerate(runs) if not run.exists())
        if not settings.resume:
            return runs[free]
        if free == 0:
            raise InputError(
                f"--resume: there is no run of {name} under runs/; name its folder with --output"
            )
        return runs[free - 1]
    holds_run = (settings.output / "config.json").exists()
    if holds_run and not settings.resume:
        raise InputError(
            f"--output {settings.output} holds a run already: add --resume to go on with it, or name another"
        )
    return settings.output


def open_data(settings: Settings, plan: Any, resumed: Path | None) -> tuple[Dataset, np.ndarray]:
    """The data set and the rows that take part, in the order of the run's frozen list."""
    if settings.data is None:
        with PartialState().main_process_first():
            dataset = Dataset(demo.ensure())
    else:
        dataset = Dataset(settings.data)
    if resumed:
        number = {key: row for row, key in enumerate(dataset.column("key").tolist())}
        keys = (resumed / "rows.txt").read_text().split()
        if missing := [key for key in keys if key not in number]:
            raise InputError(
                f"{dataset.path} lacks {len(missing)} videos of the run, {missing[0]} first: give the run's data set"
            )
        return dataset, np.array([number[key] for key in keys], dtype=np.int64)
    split = settings.split or ("train" if settings.data is None else None)
    min_frames = max(settings.min_frames, plan.span if plan.short == "reject" else 1)
    return dataset, dataset.select(split=split, min_frames=min_frames)


def run_identity(
    settings: Settings, config: Any, dataset: Dataset, rows: np.ndarray, accelerator: Accelerator
) -> dict[str, Any]:
    """What must not change when a run is resumed."""
    return {
        "data": dataset.fingerprint,
        "videos": len(rows),
        "seed": settings.seed,
        "global_batch": settings.batch_size * accelerator.num_processes,
        "accumulate": settings.accumulate,
        "clip_norm": settings.clip_norm,
        "mixed_precision": accelerator.mixed_precision,
    }


class Trainer:
    """The loop, counted in optimizer steps, and the state that a checkpoint keeps."""

    def __init__(
        self,
        settings: Settings,
        identity: dict[str, Any],
        accelerator: Accelerator,
        objective: objectives.Objective,
        dataset: Dataset,
        rows: np.ndarray,
        placement: Placement,
    ) -> None:
        self.settings, self.identity, self.accelerator, self.objective = (
            settings,
            identity,
            accelerator,
            objective,
        )
        self.dataset, self.rows, self.step = dataset, rows, 0
        self.output: Path = settings.output  # type: ignore[assignment]
        self.plan = objective.view_plan(objective.config)
        self.model, self.optimizer = accelerator.prepare(objective, objective.optimizer())
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.loader = Loader(
            dataset,
            rows,
            self.plan,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            placement=placement,
            threads=settings.threads,
            prefetch=settings.prefetch,
            device=accelerator.device,
        )
        accelerator.init_trackers("tensorboard")

    def run(self) -> dict[str, float] | None:
        """Train to the last step; returns the last line of metrics, None if there was nothing left to do."""
        settings, main = self.settings, self.accelerator.is_main_process
        line, meter = None, Meter()
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not main, dynamic_ncols=True)
        with bar, (self.output / "metrics.jsonl").open("a") as metrics_file:
            while self.step < settings.steps:
                self.train_step(meter)
                bar.update()
                done = self.step == settings.steps
                if self.step % settings.log_every == 0 or done:
                    line = self.line(meter)
                    meter = Meter()
                    if not np.isfinite(line["loss"]):
                        raise InputError(
                            f"the loss is {line['loss']} at step {self.step}: lower --lr, or set --clip-norm; the last checkpoint is good"
                        )
                    self.accelerator.log(line, step=self.step)
                    if main:
                        metrics_file.write(json.dumps(line) + "\n")
                        metrics_file.flush()
                    bar.set_postfix_str(
                        f"loss {line['loss']:.3f}, top-1 {line['top1']:.3f}, {line['clips_per_s']:.1f} clips/s, "
                        f"waiting {line['wait_share']:.0%}"
                    )
                if self.step % settings.checkpoint_every == 0 or done:
                    self.save()
        return line

    def line(self, meter: Meter) -> dict[str, float]:
        """A line of metrics.jsonl: means over processes and over the steps since the last."""
        means = self.accelerator.reduce(meter.means(self.accelerator.device), "mean").tolist()
        metrics = dict(zip(meter.names(), means, strict=True))
        speed = meter.speed(self.identity["global_batch"] * self.settings.accumulate)
        return {
            "step": self.step,
            "loss": metrics.pop("loss"),
            "top1": metrics.pop("top1"),
            **speed,
            **metrics,
        }

    def train_step(self, meter: Meter) -> None:
        """One optimizer step."""
        factor = self.objective.learning_rate(self.step)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        for _ in range(self.settings.accumulate):
            with meter.waiting():
                batch = next(self.loader)
            if (
                self.step == 0
                and not (self.output / "first_batch.png").exists()
                and self.accelerator.is_main_process
            ):
                save_views(batch, self.plan, self.output / "first_batch.png")
            with self.accelerator.accumulate(self.model):
                out = self.model({"views": batch["views"], "label": batch["label"]})
                self.accelerator.backward(out.loss)
                if self.settings.clip_norm and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            meter.add({"loss": out.loss.detach(), **out.metrics})
        self.step += 1
        meter.step()

    def save(self) -> None:
        """Write OUTPUT/checkpoints/step-…; all processes call it together."""
        accelerator = self.accelerator
        path = self.output / "checkpoints" / f"step-{self.step:08d}"
        if accelerator.is_main_process:
            aside = checkpoint.begin(path)
            checkpoint.save_config(aside, self.objective, self.identity)
            checkpoint.save_weights(aside / "model.safetensors", self.objective)
            state = {
                "step": self.step,
                "loader": self.loader.state_dict(),
                "optimizer": checkpoint.save_optimizer(aside, self.optimizer.optimizer),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            }
            (aside / "state.json").write_text(json.dumps(state))
            (aside / "rows.txt").write_text("\n".join(self.dataset.column("key")[self.rows]) + "\n")
        accelerator.wait_for_everyone()
        checkpoint.save_rng(path.with_name(f".{path.name}.part"), accelerator.process_index)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoint.commit(aside, path)
            for old in sorted(path.parent.glob("step-*"))[: -self.settings.keep]:
                shutil.rmtree(old)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises InputError where the run is another than the one it was made by."""
        saved = json.loads((path / "config.json").read_text())
        now = {"objective": self.objective.name} | asdict(self.objective.config) | self.identity
        then = {"objective": saved["objective"]} | saved["config"] | saved["settings"]
        now = json.loads(json.dumps(now))
        if changed := [
            f"{k} {then.get(k)} → {now.get(k)}" for k in sorted(now | then) if now.get(k) != then.get(k)
        ]:
            raise InputError(
                f"--resume: {path} was made by another run ({'; '.join(changed)}): give its flags, or another --output"
            )
        state = json.loads((path / "state.json").read_text())
        checkpoint.load_weights(path, self.objective)
        checkpoint.load_optimizer(path, self.optimizer.optimizer, state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        checkpoint.load_rng(path, self.accelerator.process_index)
        self.loader.load_state_dict(state["loader"])
        self.step = state["step"]

    def close(self) -> None:
        self.loader.close()
        self.dataset.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
