"""The page as a browser sees it."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import evaluate
import objectives
from shards import Dataset, InputError, demo
from tests.browser import chromium


@pytest.fixture(scope="module")
def page(run, memory_run, data, tmp_path_factory) -> Iterator[Path]:
    tmp_path = tmp_path_factory.mktemp("report")
    patched = pytest.MonkeyPatch()
    patched.setenv("ACCELERATE_USE_CPU", "true")
    few = ["--fractions", "0.5", "1"]
    asked = [
        (run, "retrieval", []),
        (run, "fraction", few),
        (run, "linear", []),
        (memory_run, "retrieval", []),
    ]
    for checkpoint, protocol, flags in asked:
        out = tmp_path / "results" / f"{protocol}-{checkpoint.name}"
        common = ["--checkpoint", checkpoint, "--data", data, "--cache", tmp_path / "cache", "--output", out]
        evaluate.main(
            [protocol, *map(str, [*common, "--device", "cpu", "--seeds", 1, "--random-draws", 1, *flags])]
        )
    shown = ["--results", tmp_path / "results", "--data", data, "--html", tmp_path / "report.html"]
    evaluate.main(["report", *map(str, shown)])
    yield tmp_path / "report.html"
    patched.undo()


def test_a_page_of_its_own(page) -> None:
    text = page.read_text()
    assert (
        not re.search(r"""(src|href)=(?!["']?data:)""", text) and "<script" not in text and "http" not in text
    )
    images = re.findall(r"<img [^>]*>", text)
    # plots; six queries with three neighbours each, of two networks; six slots with three clips each
    assert len(images) >= 6 + 2 * 6 * 4 + 6 * 3
    assert all(re.search(r'alt="[^"]{8,}"', image) for image in images)
    for wanted in (
        "9 of 9",
        "random weights",
        "100.0",
        "Data efficiency",
        "t-SNE",
        "Nearest neighbours",
        "slot ",
        "t-SNE of p",
        "Recall at k",
        "<td>50</td>",
        "How it was made",
        "undecided",
    ):
        assert wanted in text, wanted
    assert "60.6" not in text  # DPC published no linear probe: nothing to show beside it
    assert "The papers' own numbers" in text and "40.2" in text and "Table 3" in text  # MemDPC's retrieval


def test_each_of_the_papers_numbers_has_a_method_and_a_place() -> None:
    with Path("evaluation/published.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        {row["method"] for row in rows}
        == {"dpc", "memdpc", "pace", "tcp", "vdim"}
        <= set(objectives.available())
    )
    assert all(0 < float(row["value"]) < 100 and row["where"].startswith("Table ") for row in rows)
    assert len({tuple(row.values()) for row in rows}) == len(rows) and None not in rows[0]


def test_a_browser_shows_it_without_complaint_on_a_phone_too(page, tmp_path) -> None:
    asking = tmp_path / "asking.html"
    script = (
        "console.log('widths ' + [...document.images].map(i => i.naturalWidth).join()); "
        "console.log('page ' + document.documentElement.scrollWidth + ' of ' + innerWidth)"
    )
    asking.write_text(page.read_text() + f"<script>addEventListener('load', () => {{ {script} }})</script>")
    done = chromium(asking, "--window-size=500,900", "--dump-dom")
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert done.returncode == 0 and len(said) == 2, done.stderr
    widths = re.search(r"widths ([\d,]+)", said[0])
    assert widths and "0" not in widths[1].split(","), said
    width = re.search(r"page (\d+) of (\d+)", said[1])
    assert width and int(width[1]) <= int(width[2]), said
    shot = tmp_path / "shot.png"
    chromium(page, "--window-size=1100,3000", "--hide-scrollbars", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        assert picture.size == (1100, 3000) and len(picture.convert("RGB").getcolors(2**24)) > 500


def test_clips_of_the_page_play(page, tmp_path) -> None:
    clips = re.findall(r'src="data:image/webp;base64,([^"]+)"', page.read_text())
    frames = []
    for number, clip in enumerate(clips):
        (tmp_path / f"{number}.webp").write_bytes(base64.b64decode(clip))
        with Image.open(tmp_path / f"{number}.webp") as opened:
            frames.append(getattr(opened, "n_frames", 1))
    assert (
        max(frames) == 10 and min(frames) >= 1
    )  # ten pictures from a video's beginning to its end; one of one frame


def test_a_folder_without_results_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no result"):
        evaluate.main(["report", "--results", str(tmp_path)])


@pytest.mark.parametrize("protocol", ["oops", "oops-finetune"])
def test_confusion_of_fails_has_their_three_classes(protocol, tmp_path) -> None:
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "spread": 0.0}
    result = {
        "protocol": protocol,
        "objective": "memdpc",
        "model": "mine",
        "checkpoint": "mine",
        "data": {"name": "oops", "fingerprint": "0" * 64, "classes": ["one"]},
        "splits": {"split": {}},
        "settings": {},
        "evaluated": {"videos": 3, "of": 3},
        "scores": {"clips": score},
        "confusion": [[3, 1, 0], [1, 2, 1], [0, 0, 4]],
        "baselines": {"random": {"scores": {"clips": score}}},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    evaluate.main(["report", "--results", str(tmp_path), "--html", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "Confusion matrix of 3 classes; 75.0 % lie on the diagonal" in page
    assert {"oops": "53.0", "oops-finetune": "64.4"}[protocol] in page  # the paper's


def test_what_a_result_says_is_escaped_and_what_it_names_stays_closed(tmp_path, data) -> None:
    """A stranger's result: markup in every text, a data set and a run of this machine as its own."""
    evil = "<script>alert(1)</script>"
    (tmp_path / "run").mkdir()
    line = {"step": 1, "loss": 1.0, "top1": 0.5, "wait_share": 0.25}
    (tmp_path / "run/metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "run/run.json").write_text(
        json.dumps({"starts": [{"command": evil, "versions": {"a": evil}}]})
    )
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "spread": 0.0}
    result = {
        "protocol": evil,
        "objective": evil,
        "model": evil,
        "origin": evil,
        "checkpoint": str(tmp_path / "run"),
        "data": {"name": evil, "fingerprint": Dataset(data).fingerprint, "classes": [evil, "b"]},
        "splits": {evil: {}},
        "settings": {"data": str(data), "layer": evil},
        "evaluated": {"videos": 3, "of": 3},
        "recall": {"video": {evil: score}},
        "baselines": {"chance": {evil: 0.5}},
        "confusion": [[1, 0], [0, 1]],
        "nearest": {"v012": ["v000", "v001", "v002"]},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    shown = ["report", "--results", tmp_path, "--title", evil, "--html", tmp_path / "page.html"]
    evaluate.main([*map(str, shown)])
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 8
    assert "webp" not in page and "give the data set" in page and "Pretraining of" not in page
    evaluate.main([*map(str, [*shown, "--data", data, "--run", tmp_path / "run"])])
    page = (tmp_path / "page.html").read_text()
    assert page.count("webp") == 4 and "Pretraining of run" in page and "<script" not in page
    for wanted in ("Loss of run over 1 steps", "Time spent waiting for data", "a &lt;script&gt;"):
        assert wanted in page, wanted


def test_of_many_classes_the_queries_are_of_different_ones(tmp_path) -> None:
    dataset = Dataset(demo.render(tmp_path / "demo", clips_per_class=(1, 2), frames=16))  # six classes
    keys, splits = dataset.column("key").tolist(), dataset.column("split").tolist()
    train, test = (
        [key for key, one in zip(keys, splits, strict=True) if one == part] for part in ("train", "test")
    )
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "spread": 0.0}
    result = {
        "protocol": "retrieval",
        "objective": "dpc",
        "model": "mine",
        "checkpoint": "mine",
        "data": {"name": "demo", "fingerprint": dataset.fingerprint, "classes": list(dataset.classes)},
        "splits": {"split": {}},
        "settings": {},
        "evaluated": {"videos": 12, "of": 12},
        "recall": {"video": {"1": score, "5": score}},
        "baselines": {"chance": {"1": 0.5, "5": 0.75}},
        "nearest": {key: train[:3] for key in test},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    shown = ["report", "--results", tmp_path, "--data", tmp_path / "demo", "--html", tmp_path / "page.html"]
    evaluate.main([*map(str, shown)])
    page = (tmp_path / "page.html").read_text()
    queries = re.findall(r"<figcaption>query ([^<]+)<", page)
    assert len(queries) == len(set(queries)) == 6
    assert re.search(r"<td>5</td><td>50\.0</td><td>75\.0</td>", page)
