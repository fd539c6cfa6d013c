"""Several results as one: two streams whose probabilities are averaged, and a protocol over all checkpoints of a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from evaluation.context import begin_processes, only_writer, write_json
from evaluation.recognition import finetune, linear
from evaluation.results import hits_by_split, load, read_predictions, same_videos
from evaluation.retrieval import retrieve
from evaluation.settings import Curve, Finetune, Fuse, Linear, Retrieval, Supervised
from evaluation.table import print_lines, row
from shards import InputError
from shards.atomic import WriterLock
from training.log import read_metrics
from training.processes import on_main


def fuse(settings: Fuse) -> None:
    """Average the probabilities of results on the same videos, such as those of an RGB and a flow network."""
    if len(settings.results) < 2:
        raise InputError(f"{' '.join(map(str, settings.results))}: name two results or more to fuse")
    lock = only_writer(settings.output)
    results = [load(folder) for folder in settings.results]
    found = [read_predictions(folder) for folder in settings.results]
    first = found[0]
    for folder, result, other in zip(settings.results[1:], results[1:], found[1:], strict=True):
        if (
            not same_videos(first, other)
            or results[0]["data"]["fingerprint"] != result["data"]["fingerprint"]
        ):
            raise InputError(f"{folder}: is of other videos or splits than {settings.results[0]}")
    # seeds of different networks are no pairs: each network's are averaged
    streams = [one["probabilities"].mean(0) for one in found]
    together = np.mean(streams, axis=0)
    given = results[0].get("baselines", {})
    kept = ("handmade", "size_length", "most_frequent")
    baselines = {  # without the difference, which is to one stream
        name: {"top1": given[name]["top1"]} if isinstance(given[name], dict) else given[name]
        for name in kept
        if name in given and (name == "most_frequent" or "top1" in given[name])
    }

    def hits_of(p_MC: np.ndarray, k: int = 1) -> list[metrics.Hits]:
        return hits_by_split(first, p_MC[None], k)

    def scored(p_MC: np.ndarray, k: int) -> dict[str, Any]:
        return metrics.score(hits_of(p_MC, k)).as_dict()

    if all("random" in one for one in found):
        random = np.mean([one["random"].mean(0) for one in found], axis=0)
        delta = metrics.difference(hits_of(together), hits_of(random)).as_dict()
        baselines["random"] = {"top1": scored(random, 1), "delta": delta}
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
    write_json(settings.output / "result.json", result)
    lock.close()
    lines = [f"{name:24}{metrics.Score(**one)} %" for name, one in result["streams"].items()]
    lines.append(f"{'together':24}{metrics.Score(**result['scores']['top1'])} %")
    print_lines(*lines, str(settings.output / "result.json"))


def curve(settings: Curve) -> None:
    """A protocol for each kept checkpoint of a run, beside what pretraining said at that step (DPC, Figure 3)."""
    run = Path(settings.checkpoint)
    kept = sorted(run.glob("checkpoints/step-*"))
    if not kept:
        raise InputError(
            f"--checkpoint {run}: is no run with checkpoints (train.py --keep says how many stay)"
        )
    folder = settings.output or Path("runs/evaluation") / f"curve-{run.resolve().name}"
    begin_processes()
    lock: list[WriterLock] = []
    on_main(lambda: lock.append(only_writer(folder)))  # the list keeps it to the end
    points: list[dict[str, Any]] = []
    random: Any = None
    for path in kept:
        baselines = settings.baselines and path == kept[-1]
        here: dict[str, Any] = {"checkpoint": str(path), "output": folder / path.name, "baselines": baselines}
        flags: dict[str, Any] = {name: getattr(settings, name) for name in Linear.__dataclass_fields__} | here
        if settings.protocol == "retrieval":
            retrieve(replace(Retrieval(str(path)), **flags))
        elif settings.protocol == "finetune":
            flags |= {name: getattr(settings, name) for name in Supervised.__dataclass_fields__} | here
            finetune(Finetune(**flags))
        else:
            linear(Linear(**flags))
        last = on_main(lambda path=path: load(folder / path.name))  # type: ignore[misc]
        headline = row(last)
        assert headline is not None
        for name in {"random", "scratch"} & headline.baselines.keys():
            random = headline.baselines[name].as_dict()
        step = int(path.name.removeprefix("step-"))
        points.append({"step": step, "downstream": headline.score.as_dict()} | _pretraining(run, step))
    result = {name: last[name] for name in ("objective", "data", "splits", "evaluated", "settings")}
    result |= {
        "protocol": "curve",
        "of": settings.protocol,
        "checkpoint": str(run),
        "model": run.resolve().name,
    }
    on_main(lambda: write_json(folder / "result.json", result | {"points": points, "random": random}))
    lines: list[str] = [
        f"step {p['step']:8}  {_said(p):26}  downstream {metrics.Score(**p['downstream'])} %" for p in points
    ]
    if random:
        lines.append(f"random weights {'':31}{metrics.Score(**random)} %")
    on_main(lambda: print_lines(*lines, str(folder / "result.json")))


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
