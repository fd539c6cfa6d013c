"""Results as the rows of a table, beside their baselines: for the report, and as Markdown and JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics import Score
from evaluation.result import load, results_below
from evaluation.settings import Table
from shards import InputError
from shards.atomic import atomic_write

MEASURES = {"top1": "top-1", "clips": "clips"}
HEAD = ("model", "protocol", "data", "%", "random weights", "size and length", "chance", "beats random", "test videos")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One result's headline. layer: --layer, "" for the method's own feature; random, trivial: the baselines' scores of
    the same measure, None where there is none.
    """

    model: str
    objective: str
    protocol: str
    measure: str
    layer: str
    data: str
    splits: list[str]
    score: Score
    random: Score | None
    trivial: Score | None
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

    @property
    def beats_random(self) -> bool | None:
        """Whether its interval lies above that of random weights; None without these."""
        return self.score.low > self.random.high if self.random else None


def row(result: dict[str, Any]) -> Row | None:
    """The headline of a result; None for one that is a curve."""
    given = result.get("baselines", {})
    if "recall" in result:
        k = next(iter(result["recall"]["video"]))
        measure, score = f"R@{k}", result["recall"]["video"][k]
        beside = {name: given[name]["video"][k] for name in ("random", "trivial") if name in given}
        chance = given["chance"][k]
    elif "scores" in result:
        name = next(iter(result["scores"]))
        measure, score = MEASURES.get(name, name), result["scores"][name]
        beside = {n: given[n].get("scores", given[n])[name] for n in ("random", "trivial") if n in given}
        chance = given.get("most_frequent")
    else:
        return None
    scores = {name: Score(**found) for name, found in beside.items()}
    return Row(
        result["model"],
        result["objective"],
        result["protocol"],
        measure,
        result["settings"].get("layer", ""),
        result["data"]["name"],
        list(result["splits"]),
        Score(**score),
        scores.get("random"),
        scores.get("trivial"),
        chance,
        result["evaluated"]["videos"],
        result["evaluated"]["of"],
    )


def table(settings: Table) -> None:
    """Print the rows of results, and write them as Markdown and JSON."""
    found = [load(folder) for folder in results_below(settings.results)]
    rows = [one for one in map(row, found) if one]
    if not rows:
        raise InputError(
            f"{' '.join(map(str, settings.results))}: holds curves only, which are no rows of a table"
        )
    lines = markdown(rows)
    if settings.markdown:
        _write(settings.markdown, "--markdown", lines)
    if settings.json:
        content = [asdict(one) | {"beats_random": one.beats_random} for one in rows]
        extra = ("checkpoint", "origin", "weights", "windows", "settings", "date")
        sources = [{name: one[name] for name in extra if name in one} for one in found if row(one)]
        rows_and_sources = [one | {"from": source} for one, source in zip(content, sources, strict=True)]
        _write(settings.json, "--json", json.dumps(rows_and_sources, indent=1, ensure_ascii=False) + "\n")
    print(lines, end="")


def markdown(rows: list[Row]) -> str:
    """A Markdown table; scores as `value ± deviation [interval]`, per cent."""
    cells = [HEAD, ("---",) * len(HEAD)]
    for one in rows:
        beats = {True: "yes", False: "no", None: ""}[one.beats_random]
        cells.append(
            (
                f"{one.model} ({one.objective})" if one.model != one.objective else one.model,
                f"{one.protocol}, {one.measured}",
                f"{one.data}, {one.part}",
                *(str(score) if score else "" for score in (one.score, one.random, one.trivial)),
                f"{100 * one.chance:.1f}" if one.chance is not None else "",
                beats,
                f"{one.evaluated} of {one.of}",
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _write(path: Path, flag: str, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{flag} {path}: {error.strerror}; choose a place that can be written to") from error
