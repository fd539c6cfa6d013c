#!/usr/bin/env python3
"""Does the loader keep up with the model, what holds it back, and what do people use instead?

    tools/bench_loader.py                                the demo set, CPU-sized model on a machine without GPU
    tools/bench_loader.py --data data/k400 --objective dpc --against dataloader --json FILE --chart FILE.png
    tools/bench_loader.py --data rendered --objective all --no-model --batch-size 8 --against dataloader
    tools/bench_loader.py --data data/k400 --objective dpc --sweep threads=1,2,4 prefetch=1,2 device=cpu,hybrid
    tools/bench_loader.py --data data/k400 --objective dpc --autotune        train.py then uses what it found

loader: batches taken as fast as they come; decode and augmentation: its parts alone; libavcodec: the ceiling of any
CPU decoder on these frames. model: training steps on one cached batch (no loader can make training faster).
training: steps on fresh batches, and the share of the time they wait. All take turns in one run on one machine:
compare them with each other. docs/notes/loader-benchmark.md says what each means and what is not fair to whom.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's modules, whichever are installed
import objectives
from benchmarks import render
from benchmarks.loader.measure import Settings, measure
from benchmarks.report import draw_chart, origin, table
from objectives.command import parse
from shards import Dataset, InputError, one_line
from shards.build.scan import data_folder
from shards.documents import write_json


def main(argv: list[str]) -> None:
    asked = [parse(flags, Settings, __doc__, "bench_loader.py") for flags in one_each(argv)]
    result = origin("tools/bench_loader.py", argv)
    first = asked[0][0]
    for path in filter(None, (first.json, first.chart)):
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    dataset = open_data(first.data)
    blocks = result["objectives"] = {}
    for settings, config in asked:
        blocks[settings.objective] = measure(settings, config, dataset)
        print(table(settings.objective, blocks[settings.objective]), flush=True)
    if first.chart:
        draw_chart(result, first.chart)
    if first.json:
        write_json(first.json, result)


def one_each(argv: list[str]) -> list[list[str]]:
    """The command line of each of the objectives that argv names: one, several with commas, or all."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--objective", nargs="?")
    named, others = parser.parse_known_args(argv)
    if named.objective is None:
        return [argv]
    chosen = objectives.available() if named.objective == "all" else named.objective.split(",")
    return [["--objective", name, *others] for name in chosen]


def open_data(path: Path | None) -> Dataset:
    rendered = str(path) == "rendered" and not Path("rendered").exists()
    return Dataset(render.ensure() if rendered else data_folder(path))


if __name__ == "__main__":
    with one_line():
        main(sys.argv[1:])
