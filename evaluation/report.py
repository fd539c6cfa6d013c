"""Results as one page that needs nothing beside itself: no network, no script, readable on a phone."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import objectives
from evaluation import fails, gallery, pictures
from evaluation.arrays import check_numbers, read_arrays
from evaluation.metrics import Score
from evaluation.result import load, results_below
from evaluation.settings import Report
from evaluation.table import row
from shards import InputError
from shards.atomic import atomic_write
from training.log import read_metrics

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600 } th, td { white-space: nowrap } td small, .soft { color: var(--soft) } tr.theirs td { font-style: italic; color: var(--soft) }
tr.theirs td:nth-child(5) { min-width: 16rem; white-space: normal }
.plot { max-width: min(100%, 34rem); height: auto; background: #fff; border-radius: 4px }
.neighbours { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1rem }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; margin: 3px }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 3px }
.row small { line-height: 1.3; display: inline-block } figcaption { font-size: 11px; margin-top: 5px; overflow-wrap: anywhere; line-height: 1.25 }
.query { outline: 3px solid #3b82f6 } .right { outline: 3px solid #16a34a } .wrong { outline: 3px solid #dc2626 }
"""


def report(settings: Report) -> None:
    """Write the page."""
    if not settings.results:
        raise InputError("report: name the folders of results that evaluate.py wrote")
    folders = results_below(settings.results)
    results = [load(folder) for folder in folders]
    body = "".join(
        [
            f"<h1>{html.escape(settings.title)}</h1>",
            _summary(results),
            *(_section(folder, result) for folder, result in zip(folders, results, strict=True)),
            *(_pretraining(run) for run in dict.fromkeys(str(result["checkpoint"]) for result in results)),
        ]
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(settings.title)}</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )
    try:
        settings.html.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(settings.html) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--html {settings.html}: {error.strerror}; choose a place that can be written to"
        ) from error
    print(f"{len(results)} results: {settings.html} ({len(page) / 1e6:.1f} MB)")


def _summary(results: list[dict[str, Any]]) -> str:
    rows = []
    for one in filter(None, map(row, results)):
        cells = [
            f"{html.escape(one.model)}<br><small>{html.escape(one.objective)}</small>",
            f"{html.escape(one.protocol)}<br><small>{html.escape(one.measured)}</small>",
            f"{html.escape(one.data)}<br><small>{html.escape(one.part)}</small>",
            *(_cell(score) for score in (one.score, one.random, one.trivial)),
            f"{one.evaluated} of {one.of}",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = ("model", "protocol", "data", "%", "random weights", "size and length", "test videos")
    return (
        "<h2>Results</h2><p class=soft>Per cent, with 95 % confidence intervals from resampled test videos; ± is the "
        f"deviation over seeds and splits.</p>{_table(head, rows)}{_published(results)}"
    )


def _published(results: list[dict[str, Any]]) -> str:
    """What the papers report of the methods and protocols that are shown."""
    there = {(result["objective"], result["protocol"]) for result in results}
    published = [(name, one) for name, method in objectives.available().items() for one in method.published]
    rows = []
    for name, one in published:
        if (name, one.protocol) in there:
            cells = (
                name,
                one.protocol,
                one.data,
                f"{one.value:.1f}",
                html.escape(one.setting),
                one.where,
            )
            rows.append('<tr class="theirs">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if not rows:
        return ""
    head = ("paper", "protocol", "data", "%", "network, input, pretrained on", "in the paper")
    return (
        "<h3>The papers' own numbers</h3><p class=soft>Theirs, not ours: from other data, networks and machines.</p>"
        f"{_table(head, rows)}"
    )


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    titles = "".join(f"<th>{name}</th>" for name in head)
    return f"<div class=wide><table><tr>{titles}</tr>{''.join(rows)}</table></div>"


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    spread = f" ± {100 * score.spread:.1f}" if score.spread else ""
    return f"{100 * score.value:.1f}{spread}<br><small>{100 * score.low:.1f} – {100 * score.high:.1f}</small>"


def _section(folder: Path, result: dict[str, Any]) -> str:
    title = f"{result['model']}: {result['protocol']} on {result['data']['name']}"
    parts = list(_pictures(folder, result))
    origin = html.escape(result.get("origin", ""))
    return f"<h2>{html.escape(title)}</h2><p class=soft>{origin}</p>{''.join(parts)}" if parts else ""


def _plot(title: str, uri: str, says: str) -> str:
    return f'<h3>{html.escape(title)}</h3><img class="plot" alt="{html.escape(says)}" src="{uri}">'


def _pictures(folder: Path, result: dict[str, Any]) -> Iterator[str]:
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
    counts = result.get("confusion") or result.get("scores", {}).get("confusion")
    if counts:
        names = fails.CLASSES if result["protocol"].startswith("oops") else classes
        right = np.trace(np.array(counts)) / max(np.sum(counts), 1)
        yield _plot(
            "Confusion, % of each class",
            pictures.confusion(np.array(counts), names),
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
    if "nearest" in result:
        yield gallery.neighbours(result)
    if (folder / "memory.npz").exists():
        yield gallery.slots(folder, result)
        p, labels = _points(folder / "memory.npz", "p", len(classes))
        if len(p) > 3:
            yield _plot(
                "Training videos by the slots they address (t-SNE of p)",
                pictures.t_sne(p, labels, classes),
                f"Scatter plot of {len(p)} training videos by their addressing of the memory, coloured by class",
            )


def _points(path: Path, name: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (M, D) of videos, and their labels (M,)."""
    fix = "evaluate again"
    found = read_arrays(path, {name: "real M D", "label": "whole M"}, fix)
    check_numbers(path, found["label"], classes, fix)
    return found[name], found["label"]


def _pretraining(run: str) -> str:
    """A run's curves, where the checkpoint is a run's folder."""
    path = Path(run) / "metrics.jsonl"
    lines = read_metrics(path) if path.is_file() else []
    names = [name for name in ("top1", "chance", "val_top1") if any(name in line for line in lines)]
    if not names:
        return ""
    series = {
        name: (
            [line["step"] for line in lines if name in line],
            [line[name] for line in lines if name in line],
        )
        for name in names
    }
    drawn = pictures.lines(series, "step", "top-1")
    said = f"Pretraining top-1 of {Path(run).name} over {lines[-1]['step']} steps, and chance"
    return _plot(f"Pretraining of {Path(run).name}", drawn, said)
