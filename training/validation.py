"""The loss on a validation split, and the learning rate that falls where it no longer does."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from objectives import Objective
from objectives.base import Plateau
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from pipelines.views import eval_view
from shards import InputError
from training.feed import tensors
from training.meter import Meter
from training.processes import OwnError
from training.run import Run
from training.settings import Settings
from training.speed import Speed


class Decay:
    """A Plateau rule and where it stands. factor: on the learning rate, now. The rule starts again with each stage."""

    def __init__(self, rule: Plateau | None) -> None:
        self.rule, self.stage = rule, 0
        self.lowest: float | None = None
        self.waited = self.falls = 0

    @property
    def factor(self) -> float:
        return self.rule.factor**self.falls if self.rule else 1.0

    def begin(self, stage: int) -> None:
        """The objective is in this stage of its curriculum."""
        if stage != self.stage:
            self.stage, self.lowest, self.waited, self.falls = stage, None, 0, 0

    def judge(self, loss: float) -> None:
        """A validation's loss."""
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.waited = loss, 0
            return
        self.waited += 1
        if self.rule and self.waited >= self.rule.patience and self.falls < self.rule.times:
            self.falls, self.waited = self.falls + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stage", "lowest", "waited", "falls")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])


class Validation:
    """Every --val-every steps, the same clips of --val-split without training-time augmentation.

    decay: what follows for the learning rate. The whole state is `state_dict()`, alike in all processes.
    """

    enough = False

    def __init__(
        self,
        settings: Settings,
        run: Run,
        accelerator: Accelerator,
        objective: Objective,
        speed: Speed,
    ) -> None:
        self.settings, self.accelerator, self.objective = settings, accelerator, objective
        self.decay = Decay(objective.plateau())
        self.validated = 0  # step of the last validation
        self.loader: Loader | None = None
        if settings.val_split is None:
            return
        world = accelerator.num_processes
        batch_size = min(settings.batch_size, len(run.val_rows) // world)
        if batch_size == 0:
            raise InputError(
                f"--val-split {settings.val_split}: has {len(run.val_rows)} videos, fewer than the {world} processes"
            )
        self.batches = settings.val_passes * (len(run.val_rows) // (batch_size * world))
        sampler = TrainSampler(
            run.dataset,
            run.val_rows,
            eval_view(objective.view_spec(objective.config)),
            batch_size,
            seed=settings.seed,
            rank=accelerator.process_index,
            world=world,
        )
        self.loader = speed.loader(run.dataset, sampler, accelerator.device, most_ahead=1, quarantine=True)

    def due(self, step: int) -> bool:
        return self.loader is not None and step > self.validated and step % self.settings.val_every == 0

    def run(self, step: int) -> dict[str, float]:
        """Means over the split of loss and metrics, "val_…", after `step` steps; all processes call it together."""
        assert self.loader is not None
        self.validated = step
        self.loader.load_state_dict({"samples": 0})
        broadcast(list(self.objective.buffers()))  # all validate the model that is saved: the main process's
        meter = Meter()
        self.objective.eval()
        with torch.no_grad():
            for _ in range(self.batches):
                given = tensors(
                    self._next_batch(), self.accelerator.device, channels_last=self.settings.channels_last
                )
                out = self.objective(given)
                meter.add({"loss": out.loss, **out.metrics})
        self.objective.train()
        metrics = meter.means(self.accelerator.reduce(meter.sums(self.accelerator.device), "sum"))
        self.decay.judge(metrics["loss"])
        return {"val_step": step} | {f"val_{name}": value for name, value in metrics.items()}

    def _next_batch(self) -> dict[str, Any]:
        assert self.loader is not None
        try:
            return next(self.loader)
        except InputError as error:
            raise OwnError(str(error)) from error

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self.validated, "decay": self.decay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.validated = state["validated"]
        self.decay.load_state_dict(state["decay"])

    def close(self) -> None:
        if self.loader:
            self.loader.close()
