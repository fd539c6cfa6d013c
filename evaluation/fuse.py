"""Several results as one: two streams whose probabilities are averaged, and a protocol over all checkpoints of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import metrics
from evaluation.arrays import check_numbers, read_arrays
from evaluation.protocols import linear, retrieve
from evaluation.result import load, save
from evaluation.settings import Curve, Fuse, Linear, Retrieval
from shards import InputError
from training.log import read_metrics

PREDICTIONS = {
    "key": "text M",
    "label": "whole M",
    "split": "text M",
    "probabilities": "real S M C",
    "random?": "real R M C",
}


def fuse(settings: Fuse) -> None:
    """Average the probabilities of results on the same videos, such as those of an RGB and a flow network."""
    if len(settings.results) < 2:
        raise InputError(f"{' '.join(map(str, settings.results))}: name two results or more to fuse")
    results = [load(folder) for folder in settings.results]
    found = [_predictions(folder) for folder in settings.results]
    first = found[0]
    for folder, other in zip(settings.results[1:], found[1:], strict=True):
        same = all(np.array_equal(first[name], other[name]) for name in ("key", "label", "split"))
        same = same and first["probabilities"].shape[2] == other["probabilities"].shape[2]
        if not same or results[0]["data"]["fingerprint"] != load(folder)["data"]["fingerprint"]:
            raise InputError(f"{folder}: is of other videos or splits than {settings.results[0]}")
    # seeds of different networks are no pairs: each network's are averaged
    streams = [one["probabilities"].mean(0) for one in found]
    together = np.mean(streams, axis=0)
    given = results[0].get("baselines", {})
    baselines = {name: given[name] for name in ("trivial", "most_frequent") if name in given}
    names = sorted(set(first["split"].tolist()))

    def scored(p_MC: np.ndarray, k: int) -> dict[str, Any]:
        hit_M = metrics.hits(p_MC, first["label"], k)
        return metrics.score([hit_M[first["split"] == name][None] for name in names]).as_dict()

    if all("random" in one for one in found):
        random = np.mean([one["random"].mean(0) for one in found], axis=0)
        baselines["random"] = {"top1": scored(random, 1)}
    ks = {"top1": 1} | ({"top5": 5} if together.shape[1] > 5 else {})
    result = {
        "protocol": f"two streams, {results[0]['protocol']}",
        "checkpoint": [one["checkpoint"] for one in results],
        "objective": results[0]["objective"],
        "model": " + ".join(one["model"] for one in results),
        "data": results[0]["data"],
        "splits": results[0]["splits"],
        "evaluated": results[0]["evaluated"],
        "settings": {"results": [str(folder) for folder in settings.results]},
        "scores": {name: scored(together, k) for name, k in ks.items()}
        | {"confusion": metrics.confusion(together, first["label"]).tolist()},
        "streams": {one["model"]: scored(p, 1) for one, p in zip(results, streams, strict=True)},
        "baselines": baselines,
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    save(settings.output, result)
    lines = [f"{name:24}{metrics.Score(**one)} %" for name, one in result["streams"].items()]
    lines.append(f"{'together':24}{metrics.Score(**result['scores']['top1'])} %")
    tqdm.write("\n".join([*lines, str(settings.output / "result.json")]))


def _predictions(folder: Path) -> dict[str, np.ndarray]:
    path, fix = folder / "predictions.npz", "linear, nonlinear and finetune leave predictions: evaluate again"
    found = read_arrays(path, PREDICTIONS, fix)
    if not all(value.size for value in found.values()):
        raise InputError(f"{path}: holds no predictions; {fix}")
    check_numbers(path, found["label"], found["probabilities"].shape[2], fix)
    return found


def curve(settings: Curve) -> None:
    """A protocol for each kept checkpoint of a run, beside what pretraining said at that step (DPC, Figure 3)."""
    run = Path(settings.checkpoint)
    kept = sorted(run.glob("checkpoints/step-*"))
    if not kept:
        raise InputError(
            f"--checkpoint {run}: is no run with checkpoints (train.py --keep says how many stay)"
        )
    folder = settings.output or Path("runs/evaluation") / f"curve-{run.resolve().name}"
    points, random = [], None
    for path in kept:
        flags = {name: getattr(settings, name) for name in Linear.__dataclass_fields__}
        baselines = settings.baselines and path == kept[-1]
        flags |= {"checkpoint": str(path), "output": folder / path.name, "baselines": baselines}
        if settings.protocol == "linear":
            linear(Linear(**flags))
            said = load(folder / path.name)
            downstream, random = said["scores"]["top1"], said["baselines"].get("random", {}).get("top1")
        else:
            retrieve(replace(Retrieval(str(path)), **flags))
            said = load(folder / path.name)
            downstream = said["recall"]["video"]["1"]
            random = said["baselines"]["random"]["video"]["1"] if "random" in said["baselines"] else None
        step = int(path.name.removeprefix("step-"))
        points.append({"step": step, "downstream": downstream} | _pretraining(run, step))
    last = load(folder / kept[-1].name)
    result = {name: last[name] for name in ("objective", "data", "splits", "evaluated", "settings")}
    result |= {
        "protocol": "curve",
        "of": settings.protocol,
        "checkpoint": str(run),
        "model": run.resolve().name,
    }
    save(folder, result | {"points": points, "random": random})
    lines = [
        f"step {p['step']:8}  {_said(p):26}  downstream {metrics.Score(**p['downstream'])} %" for p in points
    ]
    if random:
        lines.append(f"random weights {'':31}{metrics.Score(**random)} %")
    tqdm.write("\n".join([*lines, str(folder / "result.json")]))


def _pretraining(run: Path, step: int) -> dict[str, float]:
    """The last line of metrics at or before a step; that of validation where there is one."""
    before = [line for line in read_metrics(run / "metrics.jsonl") if line["step"] <= step]
    last = before[-1] if before else {}
    found = {"pretraining_top1": last.get("val_top1", last.get("top1")), "pretraining_loss": last.get("loss")}
    return {name: value for name, value in found.items() if value is not None}


def _said(point: dict[str, Any]) -> str:
    """What pretraining said at a point: its top-1, or its loss where the method has no top-1."""
    names = {"pretraining_top1": "pretraining top-1", "pretraining_loss": "pretraining loss"}
    return next((f"{label} {point[name]:.3f}" for name, label in names.items() if name in point), "")
