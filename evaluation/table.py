"""Results as the rows of a table, beside their baselines: for the report, and as Markdown, CSV, LaTeX and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.context import Context, write_json, write_text
from evaluation.metrics import Score, difference
from evaluation.results import BASELINES, hits_by_split, load, read_predictions, results_below, same_videos
from evaluation.settings import Table
from shards import InputError

PROBES = ("linear", "nonlinear", "attentive")
MEASURES = {"top1": "top-1", "clips": "clips"}
HEAD = ("model", "protocol", "data", "%", "class mean", *BASELINES.values(), "chance", "test videos")


@dataclass(frozen=True)
class Row:
    """One result's headline. layer: --layer, "" for the method's own feature. baselines, delta: by name, their scores of
    the same measure, and ours less theirs. class_mean, chance: None where there is none.
    """

    model: str
    objective: str
    protocol: str
    measure: str
    layer: str
    data: str
    splits: list[str]
    score: Score
    class_mean: float | None
    baselines: dict[str, Score]
    delta: dict[str, Score]
    chance: float | None
    evaluated: int
    of: int

    @property
    def measured(self) -> str:
        """What was measured, and by which feature if not by the method's own."""
        return f"{self.measure} by {self.layer}" if self.layer else self.measure

    @property
    def part(self) -> str:
        """The splits, in few words."""
        return ", ".join(self.splits) if len(self.splits) < 4 else f"{len(self.splits)} folds"

    def verdict(self, name: str) -> str:
        """Against a baseline: "better", "worse" or "undecided" by the paired interval; "" without one."""
        return self.delta[name].verdict if name in self.delta else ""


def row(result: dict[str, Any]) -> Row | None:
    """The headline of a result; None for one that is a curve."""
    given = result.get("baselines", {})
    there = [name for name in BASELINES if given.get(name)]
    class_mean = result.get("class_mean")
    if "recall" in result:
        k = next(iter(result["recall"]["video"]))
        measure, score = f"R@{k}", result["recall"]["video"][k]
        beside = {name: given[name]["video"][k] for name in there}
        chance = given["chance"][k]
    elif "scores" in result:
        name = next(iter(result["scores"]))
        measure, score = MEASURES.get(name, name), result["scores"][name]
        beside = {one: given[one].get("scores", given[one])[name] for one in there}
        chance = given.get("most_frequent")
        class_mean = result["scores"].get("class_mean", class_mean)
    else:
        return None
    return Row(
        result["model"],
        result["objective"],
        result["protocol"],
        measure,
        result["settings"].get("layer", ""),
        result["data"]["name"],
        list(result["splits"]),
        Score(**score),
        class_mean,
        {name: Score(**found) for name, found in beside.items()},
        {name: Score(**given[name]["delta"]) for name in there if given[name].get("delta")},
        chance,
        result["evaluated"]["videos"],
        result["evaluated"]["of"],
    )


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows of a result: its headline, or one for each share of the labels."""
    if headline := row(result):
        return [headline]
    curves = result.get("curves", {})
    shares = curves.get("model", {})
    beside = {
        share: {
            name: curves[title][share] for name, title in BASELINES.items() if share in curves.get(title, {})
        }
        for share in shares
    }
    return [
        Row(
            result["model"],
            result["objective"],
            result["protocol"],
            f"top-1 with {float(share):.3g} of the labels",
            result["settings"].get("layer", ""),
            result["data"]["name"],
            list(result["splits"]),
            Score(**found["top1"]),
            found.get("class_mean"),
            {name: Score(**one["top1"]) for name, one in beside[share].items()},
            {name: Score(**one["delta"]) for name, one in beside[share].items() if one.get("delta")},
            None,
            result["evaluated"]["videos"],
            result["evaluated"]["of"],
        )
        for share, found in shares.items()
    ]


def load_all(paths: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """The results in these folders, or in those inside them; probes beside training from scratch, where that is there too."""
    found = {folder: load(folder) for folder in results_below(paths)}
    _fill_scratch(found)
    return found


def _fill_scratch(results: dict[Path, dict[str, Any]]) -> None:
    """Give each probe the baseline "scratch" from a fine-tuning of fresh weights in the same network, with the same
    videos and labels, where there is one among the results: the best of several. Δ is paired.
    """
    trained: dict[str, tuple[Score, Path, str]] = {}
    for folder, result in results.items():
        one = row(result) if result["protocol"] == "finetune" else None
        if one is None or result["settings"].get("label_fraction", 1) != 1:
            continue
        own, task = result["settings"].get("from_scratch", False), _task(result)
        score = one.score if own else one.baselines.get("scratch")
        if score and (task not in trained or score.value > trained[task][0].value):
            trained[task] = score, folder, "probabilities" if own else "random"
    for folder, result in results.items():
        if result["protocol"] in PROBES and (best := trained.get(_task(result))):
            score, there, name = best
            ours, theirs = read_predictions(folder), read_predictions(there)
            if name in theirs and same_videos(ours, theirs):
                hits = hits_by_split(ours, ours["probabilities"]), hits_by_split(theirs, theirs[name])
                beside = {"top1": score.as_dict(), "delta": difference(*hits).as_dict()}
                result["baselines"] = result.get("baselines", {}) | {"scratch": beside}


def _task(result: dict[str, Any]) -> str:
    """What results have in common where one network is trained for the same: its config, the data, splits, and labels."""
    same = (result["objective"], result.get("config"), result["data"]["fingerprint"], result["splits"])
    return json.dumps([*same, result["settings"].get("permute_labels", False)], sort_keys=True)


def finish(context: Context, result: dict[str, Any]) -> None:
    """Write a result and print what it says."""
    path = context.folder / "result.json"
    write_json(path, result)
    evaluated = result["evaluated"]
    covered = f"{evaluated['videos']} of {evaluated['of']} test videos evaluated"
    if unreadable := evaluated["unreadable"]:
        covered += f"; {len(unreadable)} videos cannot be decoded: {', '.join(sorted(unreadable)[:5])}"
    covered += "".join(f"; {count} {why}" for why, count in result.get("left_out", {}).items() if count)
    print_lines(context.model.origin, covered, *_lines(result), str(path))


def print_lines(*lines: str) -> None:
    tqdm.write("\n".join(lines))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    """The scores of a result, and what the headline's baselines have."""
    for name, curve in result.get("curves", {}).items():
        for share, found in curve.items():
            yield f"{name}, {float(share):5.0%} of the labels: {Score(**found['top1'])} %"
    one = row(result)
    if one is None:
        return
    recall = {f"R@{k}": score for k, score in result.get("recall", {}).get("video", {}).items()}
    for name, score in (recall or result["scores"]).items():
        if isinstance(score, dict) and "value" in score:
            yield f"{MEASURES.get(name, name):24}{Score(**score)} %"
    if one.class_mean is not None:
        yield f"{'  mean over classes':24}{100 * one.class_mean:.1f} %"
    for name, theirs in one.baselines.items():
        against = f": {one.verdict(name)}, Δ {one.delta[name]}" if name in one.delta else ""
        yield f"{f'  {one.measure}, ' + BASELINES[name]:32}{theirs} %{against}"
    if one.chance is not None:
        yield f"{'  chance':24}{100 * one.chance:.1f} %"
    by_split = result.get("scores", {}).get("by_split", {})
    for name, value in by_split.items() if len(by_split) > 1 else ():
        yield f"  {name:22}{100 * value:.1f} %"


def table(settings: Table) -> None:
    """Print the rows of results, and write them as asked."""
    sourced = [(one, result) for result in load_all(settings.results).values() for one in rows_of(result)]
    rows = [one for one, _ in sourced]
    if not rows:
        named = " ".join(map(str, settings.results))
        raise InputError(f"{named}: holds curves over training only, which are no rows of a table")
    lines = markdown(rows)
    if settings.markdown:
        write_text(settings.markdown, lines, "--markdown")
    if settings.csv:
        out = io.StringIO()
        csv.writer(out).writerows([HEAD, *map(cells, rows)])
        write_text(settings.csv, out.getvalue(), "--csv")
    if settings.latex:
        write_text(settings.latex, latex(rows), "--latex")
    if settings.json:
        extra = ("checkpoint", "origin", "weights", "windows", "settings", "made", "seen_in_pretraining")
        content = [
            asdict(one)
            | {"verdicts": {name: one.verdict(name) for name in one.delta}}
            | {"from": {name: result[name] for name in extra if name in result}}
            for one, result in sourced
        ]
        write_json(settings.json, content, "--json")
    print(lines, end="")


def cells(one: Row) -> tuple[str, ...]:
    """A row as text; scores as `value ± deviation [interval]`, per cent, a baseline's with the verdict and Δ."""
    return (
        f"{one.model} ({one.objective})" if one.model != one.objective else one.model,
        f"{one.protocol}, {one.measured}",
        f"{one.data}, {one.part}",
        str(one.score),
        _percent(one.class_mean),
        *(_against(one, name) for name in BASELINES),
        _percent(one.chance),
        f"{one.evaluated} of {one.of}",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _against(one: Row, name: str) -> str:
    if name not in one.baselines:
        return ""
    delta = f"; {one.verdict(name)}, Δ {one.delta[name]}" if name in one.delta else ""
    return f"{one.baselines[name]}{delta}"


def markdown(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    return "".join(f"| {' | '.join(_plain(cell) for cell in line)} |\n" for line in lines)


def _plain(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}


def latex(rows: list[Row]) -> str:
    """A LaTeX tabular."""
    lines = [HEAD, *map(cells, rows)]
    text = [" & ".join("".join(_LATEX.get(sign, sign) for sign in cell) for cell in line) for line in lines]
    body = " \\\\\n".join(text)
    return f"\\begin{{tabular}}{{{'l' * len(HEAD)}}}\n{body} \\\\\n\\end{{tabular}}\n"
