"""Supervised training of a whole network; resumes exactly.

The best step is chosen on a held-out part of the training videos; the test part is looked at once, at the end.
A training's folder: metrics.jsonl, checkpoints/, best.safetensors.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast
from tqdm import tqdm

from evaluation.bench import Bench
from evaluation.classifier import Classifier, copy_of, still_spec, used_parameters
from evaluation.features import Features
from evaluation.predict import predict
from objectives import checkpoint
from objectives.downstream import FineTuning
from pipelines.eval_clips import EvalClips
from shards import InputError
from shards.atomic import atomic_write
from shards.documents import number, read_json, whole
from training.feed import tensors
from training.log import read_metrics
from training.processes import Stopped, StopSignals, on_main
from training.state import NOT_WHOLE, OPTIMIZER, PROGRESS, STATE, load_optimizer, save_optimizer, seed_step

BEST = "best.safetensors"
_STATE = PROGRESS | {"best": number(-1, 1), "best_step": whole(0)}


class Batches(Protocol):
    """Endless batches of this process, with views and label; their place is all that resuming needs."""

    def __next__(self) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: dict[str, int]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """What a network is tuned for.

    classes: how many. samples: of an epoch. batches: a process's batch size → its batches. held, tested: windows of
    tuning's spec without augmentation. judge: predictions of held → the accuracy to choose by. by_feature: a video is
    classified by its windows' mean feature, not their probabilities. name: for people.
    """

    name: str
    classes: int
    samples: int
    batches: Callable[[int], Batches]
    held: EvalClips
    tested: EvalClips
    judge: Callable[[Features], float]
    by_feature: bool = False


class Tuning:
    """One training. step: optimizer steps done; best: the highest validation accuracy so far, at best_step."""

    def __init__(self, bench: Bench, task: Task, tuning: FineTuning, seed: int, folder: Path) -> None:
        self.bench, self.task, self.tuning, self.seed, self.folder = bench, task, tuning, seed, folder
        self.accelerator = bench.machine.accelerator
        size = min(tuning.batch_size, task.samples // self.accelerator.num_processes)
        if size < 2:
            raise InputError(
                f"fine-tuning with {size} clip a process and step ({task.samples} to train on): batch norm needs 2; "
                "give --train-batch-size and as many videos"
            )
        torch.manual_seed(seed)
        self.spec = still_spec(tuning.spec)
        objective = copy_of(bench.model.objective)
        self.classifier = Classifier(objective, self.spec, task.classes, tuning, bench.settings.layer)
        self.model, self.optimizer = self.accelerator.prepare(self.classifier, self._optimizer())
        self.start = {name: p.detach().clone() for name, p in objective.named_parameters()}
        self.step, self.best, self.best_step = 0, -1.0, 0
        self.batches = task.batches(size)

    def _optimizer(self) -> torch.optim.Optimizer:
        tuning, parameters = self.tuning, used_parameters(self.classifier, self.spec)
        if tuning.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=tuning.lr, weight_decay=tuning.weight_decay)
        return torch.optim.SGD(parameters, lr=tuning.lr, momentum=0.9, weight_decay=tuning.weight_decay)

    def train_step(self) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.tuning, self.step)
        seed_step(self.seed, self.step, self.accelerator.process_index)
        given = tensors(next(self.batches), self.accelerator.device)
        loss = F.cross_entropy(self.model(given["views"]), given["label"])
        self.accelerator.backward(loss + self._pull() if self.tuning.pull else loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _pull(self) -> torch.Tensor:
        """Decay towards the weights that training started from."""
        named = self.classifier.objective.named_parameters()
        distances = [(p - self.start[name]).square().sum() for name, p in named if p.requires_grad]
        return self.tuning.pull / 2 * torch.stack(distances).sum()

    def predict(self, windows: EvalClips) -> Features:
        dataset, machine, by_feature = self.bench.dataset, self.bench.machine, self.task.by_feature
        return predict(self.classifier, dataset, windows, self.spec, machine, by_feature=by_feature)

    def validate(self) -> float:
        """Accuracy of the held-out training videos; the best weights are kept."""
        broadcast(
            list(self.classifier.buffers())
        )  # all look with the statistics that are saved: the main process's
        top1 = self.task.judge(self.predict(self.task.held))
        if top1 > self.best:
            self.best, self.best_step = top1, self.step
            on_main(self._write_best)
        return top1

    def _write_best(self) -> None:
        with atomic_write(self.folder / BEST) as aside:
            checkpoint.save_weights(aside, self.classifier)

    def run(self, stop: StopSignals, steps: int, every: int, patience: int) -> Features:
        """Train, validating every so many steps, to the end or until `patience` validations bring nothing; then test
        the best weights. Raises Stopped after a signal, with a checkpoint written."""
        bar = tqdm(
            total=steps,
            initial=self.step,
            unit="step",
            desc=f"{self.task.name}, seed {self.seed}",
            disable=not self.bench.main,
            dynamic_ncols=True,
        )
        with bar:
            while self.step < steps:
                if patience and self.step - self.best_step >= patience * every and self.best >= 0:
                    break
                loss = self.train_step()
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}, validation {max(self.best, 0):.3f}")
                signum = stop.agreed()
                validates = self.step % every == 0 or self.step == steps
                if validates:
                    line = {"step": self.step, "loss": loss, "validation_top1": self.validate()}
                    on_main(lambda line=line: self._log(line))  # type: ignore[misc]
                if validates or signum:
                    on_main(self.save)
                if signum and self.step < steps:
                    raise Stopped(signum, f"step {self.step} is saved; go on with --resume")
        checkpoint.load_weights(self.folder / BEST, self.classifier)
        return self.predict(self.task.tested)

    def _log(self, line: dict[str, float]) -> None:
        path = self.folder / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        lines = [one for one in lines if one["step"] < line["step"]] + [line]
        with atomic_write(path) as aside:
            aside.write_text("".join(json.dumps(one) + "\n" for one in lines))

    def save(self) -> None:
        """Write checkpoints/step-…, and keep it alone."""
        path = self.folder / "checkpoints" / f"step-{self.step:08d}"
        aside = checkpoint.begin(path)
        checkpoint.save_weights(aside / checkpoint.WEIGHTS, self.classifier)
        rest = {
            "step": self.step,
            "loader": self.batches.state_dict(),
            "best": self.best,
            "best_step": self.best_step,
            "optimizer": save_optimizer(aside / OPTIMIZER, self.optimizer.optimizer),
        }
        (aside / STATE).write_text(json.dumps(rest))
        checkpoint.commit(aside, path)
        for old in sorted(path.parent.glob("step-*"))[:-1]:
            checkpoint.remove(old)

    def load(self, path: Path) -> None:
        checkpoint.load_weights(path / checkpoint.WEIGHTS, self.classifier)
        state = read_json(path / STATE, _STATE, NOT_WHOLE)
        load_optimizer(path / OPTIMIZER, self.optimizer.optimizer, state["optimizer"])
        self.batches.load_state_dict(state["loader"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.batches.close()


def rate(tuning: FineTuning, step: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0."""
    drops = sum(step >= at for at in tuning.decay_at)
    drops += step // tuning.decay_every if tuning.decay_every else 0
    return tuning.lr * tuning.decay_by**drops


def with_flags(tuning: FineTuning, steps: int, changes: dict[str, Any]) -> FineTuning:
    """The paper's fine-tuning with the user's changes; milestones move with the length. No video is too short."""
    scale = steps / tuning.steps
    spec = replace(tuning.spec, padding="repeat_last") if tuning.spec.padding == "error" else tuning.spec
    return replace(
        tuning,
        spec=spec,
        steps=steps,
        decay_at=tuple(round(at * scale) for at in tuning.decay_at),
        decay_every=max(1, round(tuning.decay_every * scale)) if tuning.decay_every else 0,
        **changes,
    )
