"""Results as one page that needs nothing beside itself: no network, no script, readable on a phone."""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import pictures
from evaluation.metrics import Score
from evaluation.published import PUBLISHED
from evaluation.result import load
from evaluation.settings import Report
from shards import Dataset, InputError, demo
from shards.aside import written_aside

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem } .wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { font-weight: 600 } td small, .soft { color: var(--soft) } tr.theirs td { font-style: italic; color: var(--soft) }
.plot { max-width: min(100%, 34rem); height: auto; background: #fff; border-radius: 4px }
.neighbours { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
.row { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 3px }
figcaption { font-size: 11px; overflow-wrap: anywhere; line-height: 1.25 }
.query { outline: 3px solid #3b82f6 } .right { outline: 3px solid #16a34a } .wrong { outline: 3px solid #dc2626 }
"""
QUERIES = 6


def report(settings: Report) -> None:
    """Write the page."""
    if not settings.results:
        raise InputError("report: name the folders of results that evaluate.py wrote")
    folders = [found for folder in settings.results for found in _results_in(folder)]
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
        with written_aside(settings.html) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--html {settings.html}: {error.strerror}; choose a place that can be written to"
        ) from error
    print(f"{len(results)} results: {settings.html} ({len(page) / 1e6:.1f} MB)")


def _results_in(folder: Path) -> list[Path]:
    """The folder itself, or every result below it."""
    if (folder / "result.json").exists():
        return [folder]
    below = sorted(path.parent for path in folder.glob("*/result.json"))
    if not below:
        raise InputError(f"{folder}: has no result of evaluate.py")
    return below


def _headline(result: dict[str, Any]) -> tuple[str, dict[str, float], dict[str, Any]] | None:
    """What is measured, its score, and the baselines' of the same measure."""
    given = result.get("baselines", {})
    if "recall" in result:
        k = next(iter(result["recall"]["video"]))
        beside = {n: given[n]["video"][k] for n in ("random", "trivial") if n in given}
        return f"R@{k}", result["recall"]["video"][k], beside
    if "curves" in result:
        return None
    if "scores" in result:
        name = next(iter(result["scores"]))
        beside = {n: given[n].get("scores", given[n])[name] for n in ("random", "trivial") if n in given}
        return ("top-1" if name == "top1" else name), result["scores"][name], beside
    return None


def _summary(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        if not (headline := _headline(result)):
            continue
        name, score, beside = headline
        counted = result["evaluated"]
        of = f"{counted['videos']} of {counted['of']}"
        cells = [
            f"{html.escape(result['model'])}<br><small>{html.escape(result['objective'])}</small>",
            f"{html.escape(result['protocol'])}<br><small>{name}</small>",
            f"{html.escape(result['data']['name'])}<br><small>{', '.join(result['splits'])}</small>",
            _cell(score),
            *(_cell(beside.get(baseline)) for baseline in ("random", "trivial")),
            of,
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    there = {(result["objective"], result["protocol"]) for result in results}
    for one in PUBLISHED:
        if (one.objective, one.protocol) in there:
            cells = [one.objective, one.protocol, one.data, f"{one.value:.1f}", "", "", ""]
            note = f"<br><small>the paper's own, {html.escape(one.where)}: {html.escape(one.setting)}</small>"
            cells[0] += note
            rows.append('<tr class="theirs">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(
        f"<th>{name}</th>"
        for name in ("model", "protocol", "data", "%", "random weights", "size and length", "test videos")
    )
    return (
        "<h2>Results</h2><p class=soft>Per cent, with 95 % confidence intervals from resampled test videos; ± is the "
        "deviation over seeds and splits. Rows in italics are the papers' own numbers, from other data and machines.</p>"
        f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def _cell(score: dict[str, float] | None) -> str:
    if score is None:
        return "–"
    found = Score(**score)
    spread = f" ± {100 * found.spread:.1f}" if found.spread else ""
    return f"{100 * found.value:.1f}{spread}<br><small>{100 * found.low:.1f} – {100 * found.high:.1f}</small>"


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
        points = [(100 * p["pretraining_top1"], p["downstream"]) for p in result["points"]]
        yield _plot(
            "Self-supervised against downstream accuracy",
            pictures.curves({result["model"]: points}, "pretraining top-1, %"),
            f"{len(points)} checkpoints of a run, downstream accuracy over pretraining accuracy",
        )
    counts = result.get("confusion") or result.get("scores", {}).get("confusion")
    if counts:
        names = ("intentional", "transition", "unintentional") if result["protocol"] == "oops" else classes
        right = np.trace(np.array(counts)) / max(np.sum(counts), 1)
        yield _plot(
            "Confusion, % of each class",
            pictures.confusion(np.array(counts), names),
            f"Confusion matrix of {len(names)} classes; {100 * right:.1f} % lie on the diagonal",
        )
    if (folder / "features.npz").exists():
        with np.load(folder / "features.npz") as found:
            x, labels = found["x"], found["label"]
        if len(x) > 3:
            yield _plot(
                "Test videos by feature (t-SNE)",
                pictures.t_sne(x, labels, classes),
                f"Scatter plot of {len(x)} test videos, coloured by class",
            )
    if "nearest" in result:
        yield _neighbours(result)


def _neighbours(result: dict[str, Any]) -> str:
    """Queries and their nearest three, spread over the classes."""
    where = result["settings"]["data"]
    try:
        dataset = Dataset(where if where and where != "None" else demo.ensure())
    except InputError as error:
        return f"<p>No clips of neighbours: {html.escape(str(error))}</p>"
    number = {key: row for row, key in enumerate(dataset.column("key").tolist())}
    label = dataset.column("label")
    queries = list(result["nearest"])
    chosen = queries[:: max(1, len(queries) // QUERIES)][:QUERIES]
    shown = []
    for query in chosen:
        figures = []
        for place, key in enumerate([query, *result["nearest"][query]]):
            name = dataset.classes[label[number[key]]]
            same = label[number[key]] == label[number[query]]
            kind, what = ("query", "query") if place == 0 else (("right" if same else "wrong"), f"{place}.")
            uri = pictures.clip(dataset, number[key])
            if uri:
                said = html.escape(f"{what} {name}")
                alt = html.escape(
                    f"Clip {key}, {name}: {'the query' if place == 0 else f'neighbour {place}'}"
                )
                figures.append(
                    f'<figure><img class="{kind}" alt="{alt}" src="{uri}"><figcaption>{said}</figcaption></figure>'
                )
        shown.append(f'<div class="row">{"".join(figures)}</div>')
    return (
        "<h3>Nearest neighbours</h3><p class=soft>A test video (blue) and its three nearest training videos: green of "
        f'the same class, red of another.</p><div class="neighbours">{"".join(shown)}</div>'
    )


def _pretraining(run: str) -> str:
    """A run's curves, where the checkpoint is a run's folder."""
    path = Path(run) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
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
