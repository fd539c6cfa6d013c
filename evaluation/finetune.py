"""Supervised training of the whole network, as each method's paper does it; resumes exactly.

The best step is chosen on a held-out part of the training videos; the test part is looked at once, at the end.
A run's folder: config.json, metrics.jsonl, checkpoints/, best.safetensors, and the result.
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from evaluation import metrics
from evaluation.bench import Bench, open_bench, output_folder
from evaluation.features import video_means
from evaluation.probe import Trained
from evaluation.protocols import tested_labels, told_of
from evaluation.result import Outcome, counted, describe, save, save_predictions, scores
from evaluation.settings import Finetune
from evaluation.splits import Labelled, Split, with_fraction
from objectives import Objective, checkpoint
from objectives.downstream import FineTuning
from pipelines.loader import Loader
from pipelines.plan import ViewPlan, plain
from pipelines.windows import Layout, WindowLoader, Windows
from shards import InputError
from shards.aside import written_aside
from training.feed import tensors
from training.processes import Stopped, StopSignals, on_main
from training.state import OPTIMIZER, STATE, load_optimizer, save_optimizer, seed_step

BEST = "best.safetensors"


class Classifier(nn.Module):
    """A pretrained network and a classifier of its windows' features. views (B, V, C, T, H, W) → logits (B, classes)."""

    def __init__(self, objective: Objective, feature: int, classes: int, tuning: FineTuning) -> None:
        super().__init__()
        self.objective = objective
        layers: list[nn.Module] = [nn.BatchNorm1d(feature)]
        if tuning.hidden:
            layers += [nn.Linear(feature, tuning.hidden), nn.ReLU()]
        layers += [nn.Dropout(tuning.dropout), nn.Linear(tuning.hidden or feature, classes)]
        self.head = nn.Sequential(*layers)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.objective.represent(views))


class Tuning:
    """One split's and seed's training. step: optimizer steps done; best: the highest validation accuracy so far."""

    def __init__(
        self,
        bench: Bench,
        labelled: Labelled,
        split: Split,
        tuning: FineTuning,
        seed: int,
        folder: Path,
    ) -> None:
        self.bench, self.labelled, self.split, self.tuning, self.seed = bench, labelled, split, tuning, seed
        self.folder, self.accelerator = folder, bench.machine.accelerator
        held = labelled.held_out(split.train, seed)
        if not held.any():
            raise InputError(f"{bench.dataset.path}: too few training videos to hold a fifth of them out")
        self.rows, self.held_rows = split.train[~held], split.train[held]
        torch.manual_seed(seed)
        objective = self._objective()
        self.plan = still_plan(tuning)
        feature = self._feature_size(objective)
        self.classifier = Classifier(objective, feature, len(labelled.classes), tuning)
        self.start = {name: p.detach().clone() for name, p in objective.named_parameters()}
        self.model, self.optimizer = self.accelerator.prepare(self.classifier, self._optimizer())
        self.start = {name: value.to(self.accelerator.device) for name, value in self.start.items()}
        self.step, self.best, self.best_step = 0, -1.0, 0
        world = self.accelerator.num_processes
        size = min(tuning.batch_size, len(self.rows) // world)
        self.loader = Loader(
            bench.dataset,
            self.rows,
            tuning.plan,
            batch_size=max(size, 1),
            seed=seed,
            rank=self.accelerator.process_index,
            world=world,
            placement=bench.machine.placement,
            threads=bench.machine.threads,
            device=self.accelerator.device,
        )

    def _objective(self) -> Objective:
        """A copy of the model under test, with its heads of pretraining left out of the training."""
        trained = self.bench.model.objective
        objective = type(trained)(trained.config)
        objective.load_state_dict(trained.state_dict())
        return objective

    def _feature_size(self, objective: Objective) -> int:
        plan = self.plan
        with torch.no_grad():
            views = torch.zeros(1, plan.views, plan.channels, plan.frames, plan.size, plan.size)
            return int(objective.eval().represent(views).shape[1])

    def _optimizer(self) -> torch.optim.Optimizer:
        tuning, parameters = self.tuning, used_parameters(self.classifier, self.plan)
        if tuning.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=tuning.lr, weight_decay=tuning.weight_decay)
        return torch.optim.SGD(parameters, lr=tuning.lr, momentum=0.9, weight_decay=tuning.weight_decay)

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, counted from 0."""
        tuning = self.tuning
        drops = sum(step >= at for at in tuning.decay_at)
        drops += step // tuning.decay_every if tuning.decay_every else 0
        return tuning.lr * tuning.decay_by**drops

    def train_step(self) -> float:
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        seed_step(self.seed, self.step, self.accelerator.process_index)
        given = tensors(next(self.loader), self.accelerator.device)
        logits = self.model(given["views"])
        loss = F.cross_entropy(logits, given["label"])
        pulled = loss
        if self.tuning.pull:
            named = dict(self.classifier.objective.named_parameters())
            distance = sum(
                (named[n] - at).square().sum() for n, at in self.start.items() if named[n].requires_grad
            )
            pulled = loss + self.tuning.pull / 2 * distance
        self.accelerator.backward(pulled)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    def predict(self, rows: NDArray[np.int64], layout: Layout) -> Trained:
        """Each video's probabilities: the mean of its windows', or those of its windows' mean feature. All processes
        call it together."""
        bench, accelerator = self.bench, self.accelerator
        windows = Windows.of(bench.dataset, rows, self.plan, layout)
        size, world = bench.settings.batch_size, accelerator.num_processes
        mine = range(accelerator.process_index, WindowLoader.count(windows, size), world)
        by_feature = bench.downstream.average == "features"
        self.classifier.eval()
        found: list[tuple[NDArray, NDArray]] = []
        for batch in WindowLoader(
            bench.dataset,
            windows,
            self.plan,
            batch_size=size,
            batches=mine,
            placement=bench.machine.placement,
            threads=bench.machine.threads,
            device=accelerator.device,
        ):
            if len(batch["index"]):
                with torch.inference_mode(), accelerator.autocast():
                    feature = self.classifier.objective.represent(batch["views"])
                    said = feature if by_feature else self.classifier.head(feature).double().softmax(1)
                found.append((batch["index"].numpy(), said.double().cpu().numpy()))
        parts = [found]
        if world > 1:
            parts = [found if rank == accelerator.process_index else [] for rank in range(world)]
            for rank in range(world):
                one = [parts[rank]]
                broadcast_object_list(one, from_process=rank)
                parts[rank] = one[0]
        gathered = [pair for part in parts for pair in part]
        if not gathered:
            raise InputError(f"{bench.dataset.path}: none of the videos can be decoded")
        index, p_NC = (np.concatenate([pair[i] for pair in gathered]) for i in (0, 1))
        rows_M, p_MC = video_means(windows.row[index], p_NC)
        if by_feature:
            with torch.inference_mode():
                feature = torch.from_numpy(p_MC).float().to(accelerator.device)
                p_MC = self.classifier.head(feature).double().softmax(1).cpu().numpy()
        return Trained(rows_M, p_MC, {"step": self.best_step, "validation_top1": self.best})

    def validate(self) -> float:
        """Accuracy of the held-out training videos; the best weights are kept."""
        found = self.predict(self.held_rows, self.layout("train"))
        top1 = float(metrics.hits(found.probabilities, self.labelled.labels[found.rows]).mean())
        if top1 > self.best:
            self.best, self.best_step = top1, self.step
            on_main(lambda: self._write_best())
        return top1

    def _write_best(self) -> None:
        with written_aside(self.folder / BEST) as aside:
            checkpoint.save_weights(aside, self.classifier)

    def layout(self, part: str) -> Layout:
        """Windows of the plan that is trained on."""
        layout: Layout = getattr(self.bench.downstream, part)
        if layout.hop and self.plan.span != self.bench.downstream.plan.span:
            return replace(layout, hop=max(1, self.plan.span // 2))
        return layout

    def save(self) -> None:
        """Write checkpoints/step-…, and keep it alone."""
        path = self.folder / "checkpoints" / f"step-{self.step:08d}"
        aside = checkpoint.begin(path)
        checkpoint.save_weights(aside / checkpoint.WEIGHTS, self.classifier)
        rest = {
            "step": self.step,
            "loader": self.loader.state_dict(),
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
        state = json.loads((path / STATE).read_text())
        load_optimizer(path / OPTIMIZER, self.optimizer.optimizer, state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.best, self.best_step = state["step"], state["best"], state["best_step"]

    def run(self, stop: StopSignals, steps: int, every: int, patience: int) -> Trained:
        """Train, validating every so many steps, to the end or until `patience` validations bring nothing; then test
        the best weights. Raises Stopped after a signal, with a checkpoint written."""
        bar = tqdm(
            total=steps,
            initial=self.step,
            unit="step",
            desc=f"{self.split.name}, seed {self.seed}",
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
        return self.predict(self.split.test, self.layout("test"))

    def _log(self, line: dict[str, float]) -> None:
        path = self.folder / "metrics.jsonl"
        lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
        lines = [one for one in lines if one["step"] < line["step"]] + [line]
        with written_aside(path) as aside:
            aside.write_text("".join(json.dumps(one) + "\n" for one in lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loader.close()


def still_plan(tuning: FineTuning) -> ViewPlan:
    """One window of a test video: the training clip without augmentation; a single view where each has a start of its own."""
    plan = plain(tuning.plan)
    return replace(plan, offsets=plan.offsets[:1], groups=(), paces=()) if plan.paces else plan


def used_parameters(classifier: Classifier, plan: ViewPlan) -> list[nn.Parameter]:
    """Those that logits depend on; the others, of pretraining's heads, are frozen, as DDP demands."""
    classifier.eval()
    views = torch.zeros(2, plan.views, plan.channels, plan.frames, plan.size, plan.size)
    classifier(views).sum().backward()
    for parameter in classifier.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return [parameter for parameter in classifier.parameters() if parameter.requires_grad]


def tuning_of(settings: Finetune, bench: Bench) -> FineTuning:
    """The paper's fine-tuning with the user's changes; milestones move with the length."""
    tuning = bench.downstream.finetuning
    steps = settings.steps or (tuning.steps if settings.data is not None else 200)
    scale = steps / tuning.steps
    changes: dict[str, Any] = {
        "steps": steps,
        "decay_at": tuple(round(at * scale) for at in tuning.decay_at),
        "decay_every": max(1, round(tuning.decay_every * scale)) if tuning.decay_every else 0,
    }
    for name in ("lr", "dropout", "hidden"):
        if (value := getattr(settings, name)) is not None:
            changes[name] = value
    if settings.train_batch_size:
        changes["batch_size"] = settings.train_batch_size
    return replace(tuning, **changes)


def finetune(settings: Finetune) -> None:
    bench = open_bench(settings)
    labelled, splits = bench.labelled()
    folder = on_main(lambda: output_folder(settings, "finetune", bench.model, bench.dataset))
    tuning = tuning_of(settings, bench)
    identity = json.loads(
        json.dumps(
            {
                "weights": bench.model.fingerprint,
                "data": bench.dataset.fingerprint,
                "tuning": asdict(tuning),
                "fraction": settings.label_fraction,
                "seed": settings.seed,
            }
        )
    )
    on_main(lambda: _claim(folder, identity, settings.resume))
    outcomes = []
    with StopSignals() as stop:
        stop.begin()
        for split in splits:
            runs = []
            for seed in range(settings.seed, settings.seed + settings.seeds):
                part = with_fraction(split, labelled, settings.label_fraction, seed)
                place = folder / f"{split.name}-seed{seed}"
                place.mkdir(parents=True, exist_ok=True)
                runs.append(_one(bench, labelled, part, tuning, seed, place, stop, settings))
            outcomes.append(Outcome.of(split, runs))
        stop.end()
    if not bench.main:
        return
    evaluated = sum(len(o.rows) for o in outcomes)
    truth = tested_labels(settings.permute_labels, labelled, splits)
    result = describe(bench, "finetune", splits, evaluated, {}) | {
        "scores": scores(outcomes, truth),
        "tuning": asdict(tuning),
    }
    save_predictions(folder, outcomes, bench, labelled)
    save(folder, result)
    lines = [bench.model.origin, counted(bench, splits, evaluated, {}), *told_of(result)]
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def _one(
    bench: Bench,
    labelled: Labelled,
    split: Split,
    tuning: FineTuning,
    seed: int,
    place: Path,
    stop: StopSignals,
    settings: Finetune,
) -> Trained:
    done = place / "tested.npz"
    if settings.resume and done.exists():
        found = np.load(done)
        return Trained(found["rows"], found["probabilities"], json.loads(str(found["chosen"])))
    with Tuning(bench, labelled, split, tuning, seed, place) as run:
        newest = on_main(lambda: checkpoint.newest(place)) if settings.resume else None
        if newest:
            run.load(newest)
        tested = run.run(
            stop, tuning.steps, settings.validate_every or max(1, tuning.steps // 20), settings.patience
        )
    on_main(lambda: _write_tested(done, tested))
    return tested


def _write_tested(path: Path, tested: Trained) -> None:
    with written_aside(path) as aside, aside.open("wb") as handle:
        np.savez(
            handle, rows=tested.rows, probabilities=tested.probabilities, chosen=json.dumps(tested.chosen)
        )


def _claim(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """A new run, or one to go on with that was asked for the same. Raises InputError."""
    path = folder / "config.json"
    if path.exists() and not resume:
        raise InputError(
            f"--output {folder} holds a fine-tuning already: add --resume, or name another folder"
        )
    if path.exists():
        then = json.loads(path.read_text())
        if changed := [key for key in identity if identity[key] != then.get(key)]:
            raise InputError(f"--resume: {folder} was made with another {', '.join(changed)}: give its flags")
    else:
        for old in folder.glob("*-seed*"):
            shutil.rmtree(old)
        with written_aside(path) as aside:
            aside.write_text(json.dumps(identity, indent=1) + "\n")
