"""The loop, counted in optimizer steps."""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn, Self

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from models.networks import to_channels_last
from objectives import Objective
from pipelines.backends import release_memory
from pipelines.backends.base import is_out_of_memory
from pipelines.loader import to_device
from pipelines.sampler import Sampler, TrainSampler
from shards import InputError
from shards.atomic import atomic_write
from training.log import Log, save_views
from training.metrics import Evaluator, Meter, Phases
from training.processes import OwnError, Stopped, StopSignals, on_main, watched, writing
from training.run import Run
from training.settings import Settings, as_flags
from training.speed import Speed, Waiting, advice
from training.state import State, last_whole, prune, seed_step, update_average

log = logging.getLogger(__name__)


class Trainer:
    """A run's loop and everything it holds open; close it, or use it as a context.

    objective: any Objective. evaluators: what looks at it while it trains; they are closed with the Trainer. sampler: what
    is trained on, by default the run's rows; with one of its own, videos that cannot be decoded are not put into quarantine.
    step: optimizer steps done.
    Raises InputError where an option cannot be had here, or a checkpoint does not fit.
    """

    def __init__(
        self,
        settings: Settings,
        run: Run,
        accelerator: Accelerator,
        objective: Objective,
        speed: Speed,
        stop: StopSignals,
        evaluators: Sequence[Evaluator] = (),
        sampler: Sampler | None = None,
    ) -> None:
        self.settings, self.run_, self.accelerator, self.stop = settings, run, accelerator, stop
        self.speed, self.evaluators = speed, evaluators
        self.step = 0
        self.log: Log | None = None
        self.spec = objective.view_spec(objective.config)
        if settings.sync_bn:
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[assignment]
        to_channels_last(objective, settings.channels_last)
        average = copy.deepcopy(objective).to(accelerator.device) if settings.ema else None
        if settings.torch_compile:
            objective.compile()
        self.model, self.optimizer = accelerator.prepare(objective, objective.optimizer())
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.state = State(objective, self.optimizer.optimizer, average, accelerator.scaler)
        self.unchecked = torch.zeros((), device=accelerator.device)  # sum of losses since they were looked at
        chosen = sampler or TrainSampler(
            run.dataset,
            run.rows,
            self.spec,
            settings.batch_size,
            seed=settings.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            clips=settings.clips_per_decode,
        )
        self.loader = speed.loader(
            run.dataset, chosen, accelerator.device, quarantine=sampler is None, training=True
        )
        self.waiting = Waiting()
        self.phases = Phases(run.output, settings.profile if accelerator.is_main_process else 0)
        self.found: dict[str, float] = {}  # by evaluators, not logged yet
        for evaluator in evaluators:
            evaluator.notice = self.phases.notice
        if run.resumed:
            progress = self.state.load(run.resumed, {"evaluators": {e.name: e.shape for e in evaluators}})
            self.step = progress["step"]
            self.loader.load_state_dict(progress["loader"])
            for evaluator in evaluators:
                evaluator.load_state_dict(progress["evaluators"][evaluator.name])
            objective.begin_step(self.step - 1)

    def run(self) -> dict[str, float] | None:
        """Train to the last step; returns the last line of metrics, None if there was nothing left to do.

        Raises Stopped after a signal, with a checkpoint written; InputError if the loss is not a number.
        """
        on_main(self._open_log)
        with watched(self.settings.hang_s) as watch:
            self.phases.watch = watch
            self.stop.begin()
            watch.begin()
            line = self._loop()
        self.stop.end()
        return line

    def _loop(self) -> dict[str, float] | None:
        settings, main = self.settings, self.accelerator.is_main_process
        device = self.accelerator.device
        line, meter = None, Meter(device)
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=not main, dynamic_ncols=True)
        self.phases.begin()
        with bar, logging_redirect_tqdm():
            self.evaluate()  # where a signal came between the last step and its validation
            while self.step < settings.steps and not self.enough:
                with self.memory_named():
                    self.train_step(meter)
                if settings.profile:
                    on_main(self.phases.step)
                bar.update()
                signum = self.stop.agreed()
                if not signum:
                    with self.memory_named():
                        self.evaluate()
                done = self.step == settings.steps or self.enough
                if self.step % settings.log_every == 0 or done:
                    line = self.line(meter)
                    if self.waiting.judge(line["wait_share"], meter.steps):
                        log.warning("%s", self.word(line["wait_share"], meter.late()))
                    meter = Meter(device)
                    on_main(lambda line=line: self.log.write(line))  # type: ignore[misc,union-attr]
                    bar.set_postfix_str(
                        f"{headline(line)}, {line['clips_per_s']:.1f} clips/s, waiting {line['wait_share']:.0%}"
                    )
                if self.step % settings.checkpoint_every == 0 or done or signum:
                    self.save()
                if signum and not done:
                    raise Stopped(signum, f"step {self.step} is saved; go on with --resume")
        return line

    def evaluate(self) -> None:
        for evaluator in self.evaluators:
            if evaluator.due(self.step):
                self.phases.notice(evaluator.name)
                self.found |= evaluator.run(self.step)
                evaluator.last = self.step

    @property
    def enough(self) -> bool:
        return any(evaluator.enough for evaluator in self.evaluators)

    def _open_log(self) -> None:
        flags = as_flags(self.settings) | asdict(self.state.objective.config)
        self.log = Log(self.run_.output, self.step, self.settings.tracker, flags)

    def train_step(self, meter: Meter) -> None:
        """One optimizer step."""
        accelerator, settings = self.accelerator, self.settings
        stage, factor = (
            self.state.objective.begin_step(self.step),
            self.state.objective.learning_rate(self.step),
        )
        for evaluator in self.evaluators:
            evaluator.begin(stage)
            factor *= evaluator.factor
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * factor
        seed_step(settings.seed, self.step, accelerator.process_index)
        for _ in range(settings.accumulate):
            with self.phases("data", self.step), meter.waiting(), self.stop.waiting():
                batch = self.next_batch()
            with accelerator.accumulate(self.model):
                with self.phases("forward"):
                    out = self.model(
                        to_device(batch, accelerator.device, channels_last=settings.channels_last)
                    )
                with self.phases("backward"):
                    accelerator.backward(out.loss)
                with self.phases("step"):
                    if settings.clip_norm and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
            self.unchecked += out.loss.detach().float()
            meter.add({"loss": out.loss.detach(), **out.metrics})
        if self.state.average:
            update_average(self.state.average, self.state.objective, self.settings.ema, first=self.step == 0)
        self.step += 1
        meter.steps += 1

    def next_batch(self) -> dict[str, Any]:
        try:
            batch = next(self.loader)
        except InputError as error:
            raise OwnError(str(error)) from error
        picture = self.run_.output / "first_batch.png"
        if self.step == 0 and self.accelerator.is_main_process and not picture.exists():
            with writing(picture), atomic_write(picture) as temporary:
                save_views(batch, self.spec, temporary)
        return batch

    def line(self, meter: Meter) -> dict[str, float]:
        """A line of metrics.jsonl: means over processes and over the steps since the last."""
        metrics = meter.means(self.accelerator.reduce(meter.sums(self.accelerator.device), "sum"))
        speed = meter.speed(self.run_.identity["global_batch"] * self.settings.accumulate)
        if not math.isfinite(metrics["loss"]):
            self.refuse(f"the loss is {metrics['loss']}")
        found, self.found = self.found, {}
        return {
            "step": self.step,
            **{name: metrics.pop(name) for name in ("loss", "top1") if name in metrics},
            "lr": self.optimizer.param_groups[0]["lr"],
            **speed,
            **metrics,
            **found,
        }

    def word(self, wait_share: float, late: float) -> str:
        """What to say of too long a wait."""
        ways = advice(self.settings, self.speed, self.run_, self.spec, late)[:4]
        waits = f"step {self.step}: {wait_share:.0%} of the time is spent waiting for data"
        return "; ".join([waits, *(f"try {way}" for way in ways)])

    def save(self) -> None:
        """Write OUTPUT/checkpoints/step-…; all processes call it together."""
        model = self.state.objective
        values = [self.unchecked, *model.parameters(), *model.buffers()]
        bad = torch.stack([~value.isfinite().all() for value in values]).any().float()
        if self.accelerator.reduce(bad, "sum"):
            self.refuse("a loss or a weight is not a finite number")
        self.unchecked.zero_()
        self.phases.notice("saving")
        on_main(self._save)

    def _save(self) -> None:
        folder, keys = self.run_.output / "checkpoints", self.run_.dataset.column("key")[self.run_.rows]
        progress = {
            "step": self.step,
            "loader": self.loader.state_dict(),
            "evaluators": {evaluator.name: evaluator.state_dict() for evaluator in self.evaluators},
        }
        self.state.save(folder / f"step-{self.step:08d}", self.run_.identity, progress, keys.tolist())
        try:
            prune(self.run_.output, self.settings.keep)
        except OSError as error:
            raise InputError(
                f"{error.filename}: an old checkpoint cannot be removed ({error.strerror}); the new one is whole"
            ) from error

    def refuse(self, found: str) -> NoReturn:
        good = on_main(lambda: last_whole(self.run_.output))
        raise InputError(
            f"{found} at step {self.step}: lower --lr, or set --clip-norm; "
            + (f"the last good checkpoint is {good}" if good else "no checkpoint was written yet")
        )

    @contextmanager
    def memory_named(self) -> Iterator[None]:
        """One line for memory that runs out, in this process alone, with what would help."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            said = " ".join(str(error).split())[:200]
            raise OwnError(
                f"out of memory after step {self.step} ({said}): lower --batch-size (--accumulate keeps the clips a "
                "step), or try --gradient-checkpointing, --mixed-precision bf16, a smaller --prefetch or --cache-gib; "
                "then go on with --resume"
            ) from error

    def close(self) -> None:
        self.phases.close()
        self.loader.close()
        for evaluator in self.evaluators:
            evaluator.close()
        self.run_.close()
        if self.log:
            self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def headline(line: dict[str, float]) -> str:
    """What people read of a line of metrics: the loss, and top-1 where the method has one, with chance where it has that."""
    said = f"loss {line['loss']:.3f}"
    if "top1" in line:
        said += f", top-1 {line['top1']:.3f}"
    if "top1" in line and line.get("chance"):
        said += f" ({line['top1'] / line['chance']:.1f} × chance)"
    return said
