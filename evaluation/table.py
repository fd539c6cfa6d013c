"""Results as the rows of a table, beside their baselines: for the report, and as Markdown, CSV, LaTeX and JSON."""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import Score
from evaluation.results import BASELINES, load, results_below
from evaluation.settings import Table
from shards import InputError
from shards.atomic import atomic_write

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
    there = [name for name in BASELINES if name in given]
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


def table(settings: Table) -> None:
    """Print the rows of results, and write them as asked."""
    found = [load(folder) for folder in results_below(settings.results)]
    rows = [one for one in map(row, found) if one]
    if not rows:
        raise InputError(
            f"{' '.join(map(str, settings.results))}: holds curves only, which are no rows of a table"
        )
    lines = markdown(rows)
    if settings.markdown:
        _write(settings.markdown, "--markdown", lines)
    if settings.csv:
        out = io.StringIO()
        csv.writer(out).writerows([HEAD, *map(cells, rows)])
        _write(settings.csv, "--csv", out.getvalue())
    if settings.latex:
        _write(settings.latex, "--latex", latex(rows))
    if settings.json:
        extra = ("checkpoint", "origin", "weights", "windows", "settings", "made", "seen_in_pretraining")
        sources = [{name: one[name] for name in extra if name in one} for one in found if row(one)]
        content = [
            asdict(one) | {"verdicts": {name: one.verdict(name) for name in one.delta}, "from": source}
            for one, source in zip(rows, sources, strict=True)
        ]
        _write(settings.json, "--json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
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


def _write(path: Path, flag: str, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{flag} {path}: {error.strerror}; choose a place that can be written to") from error
