"""Results joined: two streams, and the checkpoints of a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import evaluate
from shards import InputError


@pytest.fixture
def common(data, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return list(
        map(
            str,
            (
                "--data",
                data,
                "--cache",
                tmp_path / "cache",
                "--device",
                "cpu",
                "--seeds",
                1,
                "--random-draws",
                1,
            ),
        )
    )


def test_two_streams_are_the_mean_of_their_probabilities(common, run, tmp_path) -> None:
    for name, layer in (("a", ""), ("b", "encoder.layer2")):
        out = ["--output", str(tmp_path / name)]
        evaluate.main(
            ["linear", "--checkpoint", str(run), *common, *out, *(["--layer", layer] if layer else [])]
        )
    evaluate.main(
        ["fuse", "--results", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(tmp_path / "ab")]
    )
    result = json.loads((tmp_path / "ab/result.json").read_text())
    a, b = (np.load(tmp_path / name / "predictions.npz") for name in "ab")
    p = a["probabilities"][0] + b["probabilities"][0]
    assert result["scores"]["top1"]["value"] == (p.argmax(1) == a["label"]).mean()
    random = a["random"].mean(0) + b["random"].mean(0)
    assert result["baselines"]["random"]["top1"]["value"] == (random.argmax(1) == a["label"]).mean()
    assert "size_length" in result["baselines"]
    wrong = tmp_path / "wrong"
    shutil.copytree(tmp_path / "b", wrong)
    np.savez(wrong / "predictions.npz", **{**b, "key": b["key"][::-1]})
    with pytest.raises(InputError, match="other videos"):
        evaluate.main(["fuse", "--results", str(tmp_path / "a"), str(wrong)])


def test_the_curve_has_a_point_for_each_checkpoint(common, run, tmp_path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copytree(copied / "checkpoints/step-00000001", copied / "checkpoints/step-00000003")
    lines = [{"step": n, "loss": 1 / n, "top1": n / 10} for n in (1, 2, 3)]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = ["--output", str(tmp_path / "curve"), "--protocol", "retrieval"]
    evaluate.main(["curve", "--checkpoint", str(copied), *common, *out])
    result = json.loads((tmp_path / "curve/result.json").read_text())
    points = result["points"]
    assert [(p["step"], p["pretraining_top1"]) for p in points] == [(1, 0.1), (3, 0.3)]
    assert points[0]["downstream"]["value"] == points[1]["downstream"]["value"] == 1.0
    assert result["random"]["value"] == 1.0  # colours


def test_the_curve_of_a_method_without_top1_is_over_steps(common, run, tmp_path, capsys) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
    out = ["--output", str(tmp_path / "curve"), "--protocol", "retrieval"]
    evaluate.main(["curve", "--checkpoint", str(copied), *common, *out])
    (point,) = json.loads((tmp_path / "curve/result.json").read_text())["points"]
    assert "pretraining_top1" not in point and point["pretraining_loss"] == 0.5
    said = capsys.readouterr()
    assert "pretraining loss 0.500" in said.out + said.err
    evaluate.main(["report", "--results", str(tmp_path), "--html", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "downstream accuracy over optimizer step" in page and "NaN" not in page
