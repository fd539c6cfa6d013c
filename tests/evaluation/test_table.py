"""Results as a table, and the recipe that makes the results of several runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluate
from evaluation.table import load_all, markdown, row

ROOT = Path(__file__).parents[2]


def score(value: float, half: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "spread": 0.0}


def result(value: float, random: float, layer: str = "") -> dict:
    return {
        "protocol": "linear",
        "objective": "dpc",
        "model": "mine",
        "data": {"name": "set"},
        "splits": {"split1": {}},
        "settings": {"layer": layer},
        "evaluated": {"videos": 9, "of": 9},
        "scores": {"top1": score(value)},
        "baselines": {
            "random": {"top1": score(random), "delta": score(value - random)},
            "size_length": {"top1": score(0.2)},
            "most_frequent": 0.1,
        },
    }


def test_the_verdict_is_the_paired_differences() -> None:
    for random, verdict in ((0.5, "better"), (0.75, "undecided"), (0.95, "worse")):
        found = row(result(0.8, random))
        assert found and found.verdict("random") == verdict and found.verdict("size_length") == ""
        assert found.baselines["size_length"].value == 0.2
        assert f"{verdict}, Δ " in markdown([found])
    assert row({"protocol": "fraction", "curves": {}}) is None


def test_csv_and_latex_hold_the_same_cells(tmp_path) -> None:
    content = result(0.8, 0.5, "100%_a&b") | {"checkpoint": "mine"}
    content["data"] |= {"fingerprint": "0" * 64, "classes": ["a", "b"]}
    (tmp_path / "result.json").write_text(json.dumps(content))
    files = ["--csv", tmp_path / "a.csv", "--latex", tmp_path / "a.tex"]
    evaluate.main(["table", "--results", *map(str, [tmp_path, *files])])
    with (tmp_path / "a.csv").open(newline="") as handle:
        head, cells = csv.reader(handle)
    assert head[0] == "model" and cells[1] == "linear, top-1 by 100%_a&b" and len(head) == len(cells)
    text = (tmp_path / "a.tex").read_text()
    assert r"100\%\_a\&b" in text and text.splitlines()[2].count(" & ") == len(head) - 1


def test_the_table_names_the_feature_that_is_not_the_methods_own() -> None:
    rows = [row(result(0.8, 0.5)), row(result(0.8, 0.5, "encoder:std"))]
    own, named = markdown([one for one in rows if one]).splitlines()[2:]
    assert own.startswith("| mine (dpc) | linear, top-1 | set,")
    assert named.startswith("| mine (dpc) | linear, top-1 by encoder:std | set,")


def test_the_recipe_evaluates_every_run_and_writes_the_table(run, data, tmp_path) -> None:
    flags = ["--data", data, "--cache", tmp_path / "cache", "--device", "cpu", "--folds", 2, "--seeds", 1]
    flags += ["--random-draws", 1]
    done = subprocess.run(
        [
            *("bash", ROOT / "recipes/evaluate.sh", "--from-scratch", "2"),
            *(tmp_path / "tables/mine", run, "--", *map(str, flags)),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "tables/mine.json").read_text())
    assert [(one["protocol"], one["evaluated"], one["of"]) for one in rows] == [
        ("linear", 21, 21),
        ("retrieval", 21, 21),
        ("finetune", 21, 21),
    ]
    probe, retrieval, scratch = rows
    assert all(one["verdicts"]["random"] == "undecided" for one in (probe, retrieval))
    assert all(len(one["from"]["weights"]) == 64 for one in rows)
    lines = (tmp_path / "tables/mine.md").read_text().splitlines()
    assert len(lines) == 5 and lines[2].startswith("| tiny (dpc) | linear, top-1 | colours, fold1, fold2 |")
    assert "21 of 21" in lines[3] and "R@1" in lines[3]

    # training from scratch on the same labels is a column of the probe, with the paired difference, and of nothing else
    assert probe["baselines"]["scratch"] == scratch["score"]
    assert "scratch" not in retrieval["baselines"] and scratch["from"]["settings"]["steps"] == 2
    results = tmp_path / "runs/evaluation/mine"
    folds = []
    ours, theirs = (
        dict(np.load(results / name / "predictions.npz")) for name in ("linear-tiny", "scratch-tiny")
    )
    for fold in ("fold1", "fold2"):
        of = ours["split"] == fold
        right = [one["probabilities"][0, of].argmax(1) == one["label"][of] for one in (ours, theirs)]
        folds.append(right[0].mean() - right[1].mean())
    assert probe["delta"]["scratch"]["value"] == pytest.approx(np.mean(folds))


def test_training_from_scratch_of_other_data_or_another_network_is_no_baseline(tmp_path) -> None:
    def write(name: str, **changes: object) -> None:
        content = result(0.5, 0.3) | {"checkpoint": name, "config": {"width": 1}} | changes
        content["data"] = {"name": "set", "fingerprint": "0" * 64, "classes": ["a"]} | changes.get("data", {})
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(content))
        shown = {"probabilities": np.ones((1, 2, 1)), "key": np.array(["x", "y"]), "label": np.array([0, 0])}
        np.savez(tmp_path / name / "predictions.npz", split=np.array(["split1"] * 2), **shown)

    def fresh(name: str, **changes: object) -> None:
        asked = {"from_scratch": True, "label_fraction": 1.0} | changes.pop("settings", {})
        write(name, protocol="finetune", settings=asked, **changes)

    write("probe")
    fresh("other-network", config={"width": 2})
    fresh("other-data", data={"fingerprint": "1" * 64})
    fresh("few-labels", settings={"label_fraction": 0.5})
    fresh("other-splits", splits={"split2": {}})
    probe = load_all([tmp_path])[tmp_path / "probe"]
    assert "scratch" not in probe["baselines"]
    fresh("weaker", scores={"top1": score(0.1)})
    fresh("the-one", scores={"top1": score(0.25)})
    probe = load_all([tmp_path])[tmp_path / "probe"]
    assert probe["baselines"]["scratch"]["top1"]["value"] == 0.25
    assert probe["baselines"]["scratch"]["delta"]["value"] == 0  # all predictions are the same


def test_the_recipe_says_how_it_is_used(tmp_path) -> None:
    done = subprocess.run(["bash", ROOT / "recipes/evaluate.sh", "x"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


def test_what_is_no_result_is_refused(tmp_path, capsys) -> None:
    assert evaluate.ended(evaluate.main, ["table", "--results", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    curve = result(0.8, 0.5) | {"checkpoint": "mine", "points": [{"step": 1, "downstream": score(0.8)}]}
    curve["data"] |= {"fingerprint": "0" * 64, "classes": ["a", "b"]}
    del curve["scores"]
    (tmp_path / "result.json").write_text(json.dumps(curve))
    with pytest.raises(evaluate.InputError, match="curves over training only"):
        evaluate.main(["table", "--results", str(tmp_path)])
