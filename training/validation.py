"""What looks at a network while it trains: the Evaluator, and the one that validates and lowers the learning rate."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from objectives import Objective
from objectives.base import Plateau
from pipelines.loader import Loader, to_device
from pipelines.sampler import TrainSampler
from pipelines.views import eval_view
from shards import InputError
from shards.documents import NOTHING, AnyOf, number, whole
from training.meter import Meter
from training.processes import OwnError
from training.run import Run
from training.settings import Settings
from training.speed import Speed


class Evaluator(ABC):
    """What looks at the network every `every` steps of a Trainer, and must not change how it trains.

    name: of its state in a checkpoint. shape: of that state, as shards.documents has it. every: steps from one look to
    the next, 0 for none. last: step of the last look. factor: on the learning rate.
    enough: training may end before its last step. notice: to be called with a name
    now and then in `run`, so that a long look is not taken for a process that hangs.
    All methods are called in all processes together, with the same steps.
    """

    name: ClassVar[str]
    shape: ClassVar[dict[str, Any]] = {"last": whole(0)}
    every = 0
    last = 0
    factor = 1.0
    enough: bool = False

    def __init__(self) -> None:
        self.notice: Callable[[str], None] = lambda phase: None

    @abstractmethod
    def run(self, step: int) -> dict[str, float]:
        """Look at the network after `step` steps. Returns values for the next line of metrics.jsonl."""

    def due(self, step: int) -> bool:
        return bool(self.every) and step > self.last and step % self.every == 0

    def begin(self, stage: int) -> None:  # noqa: B027 (few have a state that depends on it)
        """The objective's curriculum is in this stage; called before each step."""

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]

    def close(self) -> None:  # noqa: B027 (few have something open)
        """Release what it holds open."""


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


class Validation(Evaluator):
    """Every --val-every steps, the same clips of --val-split without training-time augmentation.

    decay: what follows for the learning rate.
    """

    name = "validation"
    shape: ClassVar[dict[str, Any]] = {
        "last": whole(0),
        "decay": {
            "stage": whole(0, 1000),
            "lowest": AnyOf(NOTHING, number()),
            "waited": whole(0),
            "falls": whole(0, 1000),
        },
    }

    def __init__(
        self,
        settings: Settings,
        run: Run,
        accelerator: Accelerator,
        objective: Objective,
        speed: Speed,
    ) -> None:
        super().__init__()
        self.settings, self.accelerator, self.objective = settings, accelerator, objective
        self.decay = Decay(objective.plateau())
        self.loader: Loader | None = None
        if settings.val_split is None:
            return
        self.every = settings.val_every
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

    @property
    def factor(self) -> float:  # type: ignore[override]
        return self.decay.factor

    def begin(self, stage: int) -> None:
        self.decay.begin(stage)

    def run(self, step: int) -> dict[str, float]:
        """Means over the split of loss and metrics, "val_…", after `step` steps; all processes call it together."""
        assert self.loader is not None
        self.loader.load_state_dict({"samples": 0})
        broadcast(list(self.objective.buffers()))  # all validate the model that is saved: the main process's
        meter = Meter()
        self.objective.eval()
        with torch.no_grad():
            for _ in range(self.batches):
                self.notice(self.name)
                given = to_device(
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
        return super().state_dict() | {"decay": self.decay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.decay.load_state_dict(state["decay"])

    def close(self) -> None:
        if self.loader:
            self.loader.close()
