"""Results as one page that needs nothing beside itself: no network, no script, readable on a phone.

report.html.jinja is the page; everything that is put into it is escaped there. Results may come from anybody: of what
they name, only the data set and the runs that the user gives are opened.
"""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from evaluation import oops, pictures
from evaluation.context import write_text
from evaluation.results import BASELINES
from evaluation.retrieval import CLIPS
from evaluation.settings import Report
from evaluation.table import load_all, row
from shards import Dataset, InputError
from shards.build.scan import data_folder
from shards.documents import check_numbers, read_arrays, read_json, short
from training.log import STARTS, read_metrics

QUERIES = 6
MEMORY = {
    **{"usage": "real K", "norm": "real K", "slot": "whole N"},
    **{"key": "text N C", "start": "whole N C", "share": "real N C"},
}
CURVES = (  # of a run: title, unit, names in metrics.jsonl, factor
    ("Loss", "loss", ("loss", "val_loss"), 1),
    ("Top-1 accuracy", "%", ("top1", "chance", "val_top1"), 100),
    ("Time spent waiting for data", "%", ("wait_share",), 100),
)
Plot = dict[str, str]


def report(settings: Report) -> None:
    """Write the page."""
    results = load_all(settings.results)
    dataset = Dataset(data_folder(settings.data)) if settings.data else None
    there = {(result["objective"], result["protocol"]) for result in results.values()}
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        published = [one for one in csv.DictReader(file) if (one["method"], one["protocol"]) in there]
    sections = [_section(folder, one, dataset) for folder, one in results.items()]
    rows = [one for one in map(row, results.values()) if one]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.jinja").render(
        title=settings.title,
        rows=rows,
        baselines={
            name: label for name, label in BASELINES.items() if any(name in one.baselines for one in rows)
        },
        published=published,
        sections=sections,
        runs=[_pretraining(run) for run in settings.run],
        percent=lambda value: f"{100 * value:.1f}",
    )
    write_text(settings.html, page, "--html")
    print(f"{len(results)} results: {settings.html} ({len(page) / 1e6:.1f} MB)")


def _section(folder: Path, result: dict[str, Any], dataset: Dataset | None) -> dict[str, Any]:
    """A result's pictures and clips, by the names that the page has for them."""
    found: dict[str, Any] = {
        "title": f"{result['model']}: {result['protocol']} on {result['data']['name']}",
        "origin": result.get("origin", ""),
        "facts": _facts(result.get("made", {})),
        "plots": list(_plots(folder, result)),
        "classes": _by_class(result),
        "recall": _recall(result),
    }
    if "nearest" in result:
        found["neighbours"] = _neighbours(result, dataset)
    if (folder / "memory.npz").exists():
        found["memory"] = _memory(folder, result, dataset)
    return found


def _names(result: dict[str, Any]) -> list[str]:
    return list(oops.CLASSES if result["protocol"].startswith("oops") else result["data"]["classes"])


def _counts(result: dict[str, Any]) -> np.ndarray | None:
    """The confusion, where it is of the classes that the result names."""
    counts = result.get("confusion") or result.get("scores", {}).get("confusion")
    return np.array(counts) if counts and len(counts) == len(_names(result)) else None


def _by_class(result: dict[str, Any]) -> list[tuple[str, float, int]]:
    counts = _counts(result)
    if counts is None:
        return []
    totals = counts.sum(1)
    return [
        (name, float(counts[i, i] / totals[i]), int(totals[i]))
        for i, name in enumerate(_names(result))
        if totals[i]
    ]


def _recall(result: dict[str, Any]) -> list[tuple[str, dict[str, float], float]]:
    """(k, name → recall of videos among the k nearest, chance); the network under test is the first name."""
    if "recall" not in result:
        return []
    given = result["baselines"]
    of = {result["model"]: result["recall"]["video"]}
    of |= {label: given[name]["video"] for name, label in BASELINES.items() if given.get(name)}
    return [
        (k, {name: by_k[k]["value"] for name, by_k in of.items() if k in by_k}, given["chance"].get(k))
        for k in result["recall"]["video"]
    ]


def _facts(values: dict[str, Any]) -> dict[str, str]:
    """Name → value in words."""
    return {
        name: ", ".join(f"{key} {one}" for key, one in value.items())
        if isinstance(value, dict)
        else str(value)
        for name, value in values.items()
        if value is not None
    }


def _plot(title: str, uri: str, alt: str) -> Plot:
    return {"title": title, "uri": uri, "alt": alt}


def _plots(folder: Path, result: dict[str, Any]) -> Iterator[Plot]:
    classes = result["data"]["classes"]
    if "curves" in result:
        lines = {
            name: [(100 * float(share), found["top1"]) for share, found in curve.items()]
            for name, curve in result["curves"].items()
        }
        best = lines["model"][-1][1]["value"]
        yield _plot(
            "Data efficiency",
            pictures.curves(lines, "labels used, %", log=True),
            f"Accuracy over the share of labels; with all of them {100 * best:.1f} %",
        )
    if "points" in result:
        points = [(p["step"], p["downstream"]) for p in result["points"]]
        label = "optimizer step"
        if all(p.get("pretraining_top1") is not None for p in result["points"]):
            points = [(100 * p["pretraining_top1"], p["downstream"]) for p in result["points"]]
            label = "pretraining top-1, %"
        drawn = {result["model"]: points}
        if result.get("random"):
            xs = [x for x, _ in points]
            drawn["random weights"] = [(x, result["random"]) for x in (min(xs), max(xs))]
        yield _plot(
            "Self-supervised against downstream accuracy",
            pictures.curves(drawn, label),
            f"{len(points)} checkpoints of a run, downstream accuracy over {label}",
        )
    counts = _counts(result)
    if counts is not None:
        names = _names(result)
        right = np.trace(counts) / max(np.sum(counts), 1)
        yield _plot(
            "Confusion, % of each class",
            pictures.confusion(counts, names),
            f"Confusion matrix of {len(names)} classes; {100 * right:.1f} % lie on the diagonal",
        )
    if (folder / "features.npz").exists():
        x, labels = _points(folder / "features.npz", "x", len(classes))
        if len(x) > 3:
            yield _plot(
                "Test videos by feature (t-SNE)",
                pictures.t_sne(x, labels, classes),
                f"Scatter plot of {len(x)} test videos, coloured by class",
            )


def _points(path: Path, name: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (M, D) of videos, and their labels (M,)."""
    fix = "evaluate again"
    found = read_arrays(path, {name: "real M D", "label": "whole M"}, fix)
    check_numbers(path, found["label"], classes, fix)
    return found[name], found["label"]


class _Gallery:
    """Clips of the videos of a result. Raises InputError where these are not to be had, or one of `keys` is not there."""

    def __init__(self, result: dict[str, Any], dataset: Dataset | None, keys: Iterable[str]) -> None:
        if dataset is None:
            raise InputError("give the data set that was evaluated, --data")
        if dataset.fingerprint != result["data"]["fingerprint"]:
            raise InputError(f"{dataset.path}: is not the data set that was evaluated")
        self.dataset = dataset
        self.row = {key: row for row, key in enumerate(dataset.column("key").tolist())}
        self.label = dataset.column("label")
        if unknown := [key for key in keys if key not in self.row]:
            raise InputError(f"{dataset.path}: has no video {short(unknown[0])}")

    def class_of(self, key: str) -> str:
        return str(self.dataset.classes[self.label[self.row[key]]])

    def clip(
        self, key: str, kind: str, caption: str, alt: str, clip: tuple[int, int] | None = None
    ) -> list[Plot]:
        """The clip; none where it cannot be decoded. clip: its first frame and how many."""
        uri = pictures.clip(self.dataset, self.row[key], clip)
        return [{"uri": uri, "kind": kind, "caption": caption, "alt": f"Clip {key}, {alt}"}] if uri else []


def _neighbours(result: dict[str, Any], dataset: Dataset | None) -> list[dict[str, Any]] | str:
    """Queries and their nearest three, spread over the classes; or why there are none."""
    try:
        gallery = _Gallery(result, dataset, chain(result["nearest"], *result["nearest"].values()))
    except InputError as error:
        return str(error)
    queries = list(result["nearest"])
    one_a_class = {gallery.class_of(query): query for query in reversed(queries)}
    if len(one_a_class) >= QUERIES:
        queries = sorted(one_a_class.values(), key=queries.index)
    rows = []
    for query in queries[:: max(1, len(queries) // QUERIES)][:QUERIES]:
        own = gallery.class_of(query)
        clips = gallery.clip(query, "query", f"query {own}", f"{own}: the query")
        for place, key in enumerate(result["nearest"][query], 1):
            name = gallery.class_of(key)
            kind = "right" if name == own else "wrong"
            clips += gallery.clip(key, kind, f"{place}. {name}", f"{name}: neighbour {place}")
        rows.append({"note": "", "more": "", "clips": clips})
    return rows


def _memory(folder: Path, result: dict[str, Any], dataset: Dataset | None) -> dict[str, Any]:
    """The memory's most used slots, and the clips that address each most (MemDPC, Figs. 8 and 9)."""
    path, classes = folder / "memory.npz", result["data"]["classes"]
    memory = read_arrays(path, MEMORY, "evaluate again")
    k = len(memory["usage"])
    check_numbers(path, memory["slot"], k, "evaluate again")
    shares = [f"{100 * memory['usage'][slot]:.1f} % (slot {slot})" for slot in memory["slot"]]
    found: dict[str, Any] = {
        "plot": _plot(
            "The memory",
            pictures.memory(memory["usage"], memory["norm"], memory["slot"]),
            f"Use and norm of {k} slots of the memory; the most used make up {', '.join(shares)}",
        ),
        "text": f"The {len(memory['slot'])} slots that make up most of what is predicted, and the {CLIPS} training clips "
        f"whose prediction takes most from each. Were all {k} used alike, each would have {100 / max(k, 1):.2g} %.",
        "clips": _slot_clips(memory, result, dataset),
        "plots": [],
    }
    p, labels = _points(path, "p", len(classes))
    if len(p) > 3:
        found["plots"].append(
            _plot(
                "Training videos by the slots they address (t-SNE of p)",
                pictures.t_sne(p, labels, classes),
                f"Scatter plot of {len(p)} training videos by their addressing of the memory, coloured by class",
            )
        )
    return found


def _slot_clips(
    memory: dict[str, np.ndarray], result: dict[str, Any], dataset: Dataset | None
) -> list[dict[str, Any]] | str:
    try:
        gallery = _Gallery(result, dataset, memory["key"].ravel().tolist())
    except InputError as error:
        return str(error)
    span = result.get("windows", {"span": 1})["span"]
    rows = []
    for number, slot in enumerate(memory["slot"].tolist()):
        clips = []
        of_slot = (memory[name][number].tolist() for name in ("key", "start", "share"))
        for key, start, share in zip(*of_slot, strict=True):
            name = gallery.class_of(key)
            caption = f"{100 * share:.0f} % · {name}"
            alt = f"{name}: takes {100 * share:.0f} % of its prediction from slot {slot}"
            clips += gallery.clip(key, "", caption, alt, (start, span))
        used = f"{100 * memory['usage'][slot]:.1f} % of all predictions"
        rows.append({"note": f"slot {slot}", "more": used, "clips": clips})
    return rows


def _pretraining(run: Path) -> dict[str, Any]:
    """A run of train.py: its curves, and how it was last started."""
    lines = read_metrics(run / "metrics.jsonl")
    plots = []
    for title, unit, names, factor in CURVES:
        series = {
            name: (
                [one["step"] for one in lines if name in one],
                [factor * one[name] for one in lines if name in one],
            )
            for name in names
            if any(name in line for line in lines)
        }
        if series:
            alt = f"{title} of {run.name} over {lines[-1]['step']} steps"
            plots.append(_plot(title, pictures.lines(series, "step", unit), alt))
    path = run / STARTS
    starts = read_json(path, {"starts": [dict]}, "remove it")["starts"] if path.exists() else []
    return {
        "title": f"Pretraining of {run.name}",
        "facts": _facts(starts[-1] if starts else {}),
        "plots": plots,
    }
