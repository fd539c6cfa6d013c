"""evaluate.py as a user types it, on videos of 1, 5 and 50 frames."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import evaluate
import objectives
from evaluation import handmade
from evaluation.context import open_context
from evaluation.model import Representation, channels, open_model
from evaluation.settings import Linear
from evaluation.table import rows_of
from objectives import checkpoint
from pipelines import colour
from pipelines.eval_clips import EvalClips, EvalLayout, EvalSampler
from pipelines.loader import Loader
from shards import Dataset, InputError
from shards.video.mp4 import DecodeError
from tests.evaluation.conftest import save
from tests.evaluation.rendered import Video, write_set

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(run, data, tmp_path, monkeypatch):
    """Evaluate the tiny run; returns its result."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def asked(protocol: str, *flags: object, checkpoint: object = run) -> dict:
        out = tmp_path / protocol
        where = () if protocol == "embed" else ("--output", out)
        common = (
            "--checkpoint",
            checkpoint,
            "--data",
            data,
            "--cache",
            tmp_path / "cache",
            "--device",
            "cpu",
        )
        evaluate.main([protocol, *map(str, (*common, *where, *flags))])
        return {} if protocol == "embed" else json.loads((out / "result.json").read_text())

    return asked


def test_linear_probe_counts_every_test_video_and_permuted_labels_are_chance(ask, capsys) -> None:
    result = ask("linear", "--seeds", 2)
    assert result["evaluated"] == {"videos": 9, "of": 9, "unreadable": {}}
    assert "9 of 9 test videos evaluated" in capsys.readouterr().out
    assert result["scores"]["top1"]["value"] == 1.0  # colours, even for random weights
    assert set(result["baselines"]) == {"random", "handmade", "size_length", "most_frequent"}
    assert len(result["baselines"]["random"]["chosen"][0]) == 5 * 2  # draws and seeds
    assert result["baselines"]["size_length"]["delta"]["value"] == pytest.approx(
        1 - result["baselines"]["size_length"]["top1"]["value"]
    )
    assert result["made"]["command"] and result["made"]["machine"]
    assert (
        result["baselines"]["size_length"]["top1"]["value"] < 0.7
    )  # lengths of test and training videos differ
    assert np.sum(result["scores"]["confusion"]) == 2 * 9
    again = ask("linear", "--seeds", 2, "--permute-labels", "--no-baselines")
    assert again["scores"]["top1"]["value"] < 0.8


def test_features_are_computed_once(ask, monkeypatch) -> None:
    first = ask("nonlinear", "--hidden", 8, "--seeds", 1, "--no-baselines")
    assert first["evaluated"]["videos"] == first["evaluated"]["of"] == 9

    def unreadable(*_: object) -> None:
        raise DecodeError("no more")

    monkeypatch.setattr("pipelines.workers.decode_views", unreadable)
    again = ask("nonlinear", "--hidden", 8, "--seeds", 1, "--no-baselines")
    assert again["scores"] == first["scores"]
    with pytest.raises(InputError, match="decoded"):
        ask("nonlinear", "--windows", 2)


def test_attentive(ask) -> None:
    result = ask("attentive", "--seeds", 1, "--random-draws", 2)
    assert result["settings"]["layer"] == "encoder:places" and result["evaluated"]["videos"] == 9
    assert result["scores"]["top1"]["value"] > 0.6  # colours
    assert {"weight_decay", "epochs"} <= result["baselines"]["random"]["chosen"][0][0].keys()
    assert "C" in result["baselines"]["handmade"]["chosen"][0][0]  # of a feature without a map


def test_retrieval_and_fractions(ask) -> None:
    result = ask("retrieval", "--k", 1, 4, "--random-draws", 2)
    assert result["recall"]["video"]["1"]["value"] == result["recall"]["clip"]["4"]["value"] == 1.0
    assert result["baselines"]["chance"]["1"] == pytest.approx(1 / 3)
    names = Dataset(result["settings"]["data"]).column("label_name")
    label = dict(zip(Dataset(result["settings"]["data"]).column("key"), names, strict=True))
    assert len(result["nearest"]) == 9
    assert all(label[query] == label[one] for query, found in result["nearest"].items() for one in found[:1])
    permuted = ask("retrieval", "--permute-labels", "--no-baselines")
    assert permuted["recall"]["video"]["1"]["value"] < 0.8
    parts = ask("fraction", "--fractions", 0.25, 1, "--seeds", 2, "--random-draws", 1)
    curves = parts["curves"]
    permuted = ask("fraction", "--fractions", 1, "--seeds", 1, "--no-baselines", "--permute-labels")
    assert permuted["curves"]["model"]["1"]["top1"]["value"] < 0.8
    assert parts["evaluated"]["videos"] == result["evaluated"]["videos"] == 9
    assert set(curves) == {"model", "random weights", "hand-made features", "size and length"}
    assert set(curves["model"]) == {
        "0.25",
        "1",
    }
    assert curves["model"]["1"]["top1"]["value"] == 1.0
    few = rows_of(parts)
    assert [one.measure for one in few] == ["top-1 with 0.25 of the labels", "top-1 with 1 of the labels"]
    for one in few:  # the paired difference is that of the two scores
        assert one.delta["random"].value == pytest.approx(one.score.value - one.baselines["random"].value)
        assert set(one.baselines) == {"random", "handmade", "size_length"} == set(one.delta)


def test_embedded_windows_are_what_the_network_says_of_them(ask, run, data, tmp_path) -> None:
    ask("embed", "--to", tmp_path / "windows.parquet", "--per", "window")
    ask("embed", "--to", tmp_path / "videos.npy", "--part", "test")
    table = pq.read_table(tmp_path / "windows.parquet")
    objective, dataset = objectives.load(run), Dataset(data)
    down = objective.downstream()
    windows = EvalClips.of(dataset, range(len(dataset)), down.spec, down.test)
    assert (
        table["key"].to_pylist() == dataset.keys(windows.row)
        and table["start"].to_pylist() == windows.start.tolist()
    )
    got = np.array(table["feature"].to_pylist(), dtype=np.float32)
    for batch in Loader(dataset, EvalSampler(dataset, windows, down.spec, 1)):
        with torch.inference_mode():
            wanted = objective.context(batch["views"])[0, -1].mean((1, 2))
        assert np.allclose(got[batch["index"][0]], wanted, atol=1e-5)
    videos = np.load(tmp_path / "videos.npy")
    keys = (tmp_path / "videos.txt").read_text().split()
    assert keys == [f"v{n:03d}" for n in range(12, 21)]
    long = np.array(table["key"].to_pylist()) == "v014"  # 50 frames: several windows
    assert long.sum() > 1 and np.allclose(videos[2], got[long].mean(0), atol=1e-6)


@pytest.mark.parametrize("name", objectives.available())
def test_every_method_has_a_feature_for_videos_of_any_length(name, data) -> None:
    """At its CPU-sized settings: of 1, 5 and 50 frames, and each window alike alone and in a batch."""
    cls = objectives.get(name)
    torch.manual_seed(0)
    objective = cls(cls.small()).eval()
    down, dataset = objective.downstream(), Dataset(data)
    windows = EvalClips.of(dataset, [12, 13, 14], down.spec, down.test)
    assert set(windows.row.tolist()) == {12, 13, 14}
    few = EvalClips(*(getattr(windows, field)[[0, -1]] for field in ("row", "start", "crop")))
    (batch,) = Loader(dataset, EvalSampler(dataset, few, down.spec, 2))
    with torch.inference_mode():
        together = objective.represent(batch["views"])
        alone = torch.cat([objective.represent(views[None]) for views in batch["views"]])
    assert together.ndim == 2 and together.isfinite().all()
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3 * together.abs().max().item())
    assert (together[0] != together[1]).any()
    down.finetuning.spec.scope("frame")


def test_a_layer_is_its_mean_or_its_change_in_time_or_both(run, data) -> None:
    objective, dataset = objectives.load(run), Dataset(data)
    down = objective.downstream()
    clips = EvalClips.of(dataset, [12, 14], down.spec, EvalLayout(count=1))
    (batch,) = Loader(dataset, EvalSampler(dataset, clips, down.spec, 2))
    with torch.inference_mode():
        z = objective.encode(batch["views"])  # (B, V, D, h, w)
        mean, change, both = (
            Representation(objective, name)(batch["views"])
            for name in ("encoder", "encoder:std", "encoder:both")
        )
        assert torch.allclose(mean, z.mean((1, 3, 4)), atol=1e-5)
        assert torch.allclose(change, z.std(1, correction=0).mean((2, 3)), atol=1e-5)
        assert change[0].abs().max() < 1e-4 < change[1].abs().max()  # of 1 frame, and of 50
        assert torch.equal(both, torch.cat([mean, change], 1))
        places = Representation(objective, "encoder:places")(batch["views"])
        assert channels(objective, "encoder:places", down.spec) == (D := z.shape[2])
        assert torch.equal(places.view(2, -1, D), z.movedim(2, -1).reshape(2, -1, D))
        for wrong in (":std", "encoder.nope", "encoder:change", "encoder:std:places"):
            with pytest.raises(InputError, match="--layer"):
                Representation(objective, wrong)


def test_two_processes_find_the_features_of_one(ask, run, data, tmp_path) -> None:
    flags = ("--batch-size", 1, "--per", "window")
    ask("embed", *flags, "--to", tmp_path / "one.npy")
    two = ("--checkpoint", run, "--data", data, "--cache", tmp_path / "other", "--device", "cpu")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    given = ("embed", *map(str, (*two, *flags, "--to", tmp_path / "two.npy")))
    done = subprocess.run(
        [sys.executable, *launcher, "evaluate.py", *given],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    one, other = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert len(list((tmp_path / "other").glob("*/*.npz"))) > 1  # chunks to divide
    # with several threads of its own, one process may add in another order
    assert np.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "argv, says",
    [
        (["linear", "--checkpoint", "/nonexistent"], "/nonexistent"),
        (["linear", "--checkpoint", "random:nope"], "random:nope"),
        (["linear", "--checkpoint", "torchvision:nope"], "torchvision:nope"),
        (["linear", "--checkpoint", "random:dpc", "--seeds", "0"], "--seeds"),
        (["linear", "--checkpoint", "random:dpc", "--subsequences", "2"], "--subsequences"),
        (["linear", "--checkpoint", "random:dpc", "--layer", "encoder.nope"], "--layer"),
        (["linear", "--checkpoint", "random:dpc", "--folds", "2", "--split", "1"], "--folds"),
        (["linear", "--checkpoint", "random:dpc", "--groups", "x"], "--groups"),
        (["retrieval", "--checkpoint", "random:dpc", "--k", "0"], "--k"),
        (["fraction", "--checkpoint", "random:dpc", "--fractions", "2"], "--fractions"),
        (["embed", "--checkpoint", "random:dpc", "--to", "x.txt"], "--to"),
        (["guess"], "guess"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(argv, says, data, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    flags = [] if len(argv) == 1 else ["--data", str(data), "--small"]
    assert evaluate.ended(evaluate.main, [*argv, *flags]) == 2
    said = capsys.readouterr().err
    error = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and says in error[0], said


def test_supervised_weights_of_torchvision_are_the_network_they_are_of(tmp_path, monkeypatch) -> None:
    from torchvision.models import video

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="fetch it from"):
        open_model("torchvision:mc3_18", small=False)
    torch.manual_seed(3)
    network = video.mc3_18().eval()
    url = video.MC3_18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    model = open_model("torchvision:mc3_18", small=False)
    clip = torch.randn(2, 1, 3, 4, 32, 32)
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        assert torch.allclose(model.objective.represent(clip), network(clip[:, 0]), atol=1e-5)


def test_a_torchvision_networks_baseline_is_its_network_with_fresh_weights() -> None:
    one, other = (open_model("random:torchvision:r3d_18", small=True, seed=seed) for seed in (0, 1))
    assert one.objective.config.backbone == "r3d_18" and one.fingerprint != other.fingerprint
    with pytest.raises(InputError, match="choose one of"):
        open_model("random:torchvision:nope", small=True)


def test_a_torchvision_network_is_evaluated_beside_fresh_weights(ask, tmp_path, monkeypatch) -> None:
    from torchvision.models import video

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="fetch it from"):
        ask("retrieval", checkpoint="torchvision:r3d_18")
    assert not (tmp_path / "cache").exists()  # that is said before any feature is computed
    torch.manual_seed(3)
    file = tmp_path / "checkpoints" / video.R3D_18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    file.parent.mkdir()
    torch.save(video.r3d_18().state_dict(), file)
    few = write_set(tmp_path / "few", [Video(n % 2, part) for part in ("train", "test") for n in range(2)])
    flags = ("--windows", 1, "--random-draws", 1, "--data", few)
    result = ask("retrieval", *flags, checkpoint="torchvision:r3d_18")
    assert result["model"] == "torchvision-r3d_18" and "supervised on Kinetics-400" in result["origin"]
    assert result["evaluated"]["videos"] == 2 and "random" in result["baselines"]


def test_a_network_without_running_statistics_gets_those_of_the_training_videos(
    data, tmp_path, monkeypatch
) -> None:
    """The first norm's mean against that of its inputs; and a window's feature does not depend on its neighbours."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = objectives.get("dpc").Config(
        width=0.05, size=34, blocks=3, frames=2, stride=2, pred_steps=1, norm="batch-statistics"
    )
    imported = save("dpc", config, tmp_path / "imported")
    settings = Linear(str(imported), data=data, device="cpu", batch_size=4)
    context = open_context(settings)
    objective, dataset = context.model.objective, context.dataset
    assert "12 videos" in context.model.origin
    spec = objective.downstream().spec
    clips = EvalClips.of(dataset, dataset.select(split="train"), spec, EvalLayout(count=1))
    views = torch.cat([batch["views"] for batch in Loader(dataset, EvalSampler(dataset, clips, spec, 4))])
    with torch.inference_mode():
        stem = objective.encoder.conv1(views.flatten(0, 1))
        assert torch.allclose(objective.encoder.bn1.running_mean, stem.mean((0, 2, 3, 4)), atol=1e-5)
        together = objective.represent(views)
        alone = torch.cat([objective.represent(one[None]) for one in views])
        apart = torch.cat([objectives.load(imported).represent(one[None]) for one in views])
    assert torch.allclose(together, alone, atol=1e-5) and not torch.allclose(together, apart, atol=1e-3)
    assert context.with_random().model.objective.config.norm == "batch"


def trained_on(run: Path, to: Path, keys: list[str] | None = None, **settings: object) -> Path:
    """A copy of a run that says what it was trained on."""
    copied = shutil.copytree(run, to) / "checkpoints/step-00000001"
    config = json.loads((copied / "config.json").read_text())
    config["settings"] |= settings
    (copied / "config.json").write_text(json.dumps(config))
    if keys:
        (copied / "rows.txt").write_text("\n".join(keys) + "\n")
    checkpoint.list_files(copied)
    return to


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("split, seen", [("train", 0), ("test", 9)])
def test_test_videos_that_were_seen_in_pretraining_are_warned_of(
    ask, run, data, tmp_path, capsys, split, seen, several
) -> None:
    """several: with another data set, whose keys are the same, before it."""
    dataset = Dataset(data)
    identity, keys = f"{dataset.name} {dataset.fingerprint[:12]}", dataset.keys(dataset.select(split=split))
    if several:
        others = [f"k_400/{key}" for key in dataset.keys(range(len(dataset)))]
        identity, keys = f"k 400 {'0' * 12} / {identity}", others + [f"{dataset.name}/{key}" for key in keys]
    trained_on(run, tmp_path / "run", keys, data=identity)
    result = ask("retrieval", "--no-baselines", checkpoint=tmp_path / "run")
    assert result["seen_in_pretraining"] == seen
    assert (f"{seen} of 9 test videos were seen in pretraining" in capsys.readouterr().err) == (seen > 0)


def test_data_of_another_rate_or_size_than_the_checkpoints_is_named(run, data, tmp_path, capsys) -> None:
    """The data set has 10 frames a second of 48×36; views are 34²."""
    for number, (trained, says) in enumerate(
        [
            ({"fps": 10.0, "short_side": 36.0}, []),
            ({"fps": 30.0, "short_side": 160.0}, ["not about 30, so that a clip lasts 3 times as long"]),
            ({"fps": 10.0, "short_side": 20.0}, ["views of 34² are sharper"]),
            (
                {},
                ["not about 20, so that a clip lasts 2 times as long"],
            ),  # DPC's 10 a second, at a stride of 2
        ]
    ):
        folder = trained_on(run, tmp_path / str(number), **trained)
        open_context(Linear(str(folder), data=data, device="cpu"))
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert len(warned) == len(says) and all(map(str.__contains__, warned, says)), warned
    open_context(Linear("random:dpc", data=data, device="cpu", small=True))
    assert "warning" not in capsys.readouterr().err


def test_features_made_by_hand_of_worked_clips() -> None:
    """A still clip has no difference and no flow; one that moves to the right has flow to the right."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV, an extra, is not installed")
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.random((64, 128)).astype(np.float32), (0, 0), 2)
    noise = (noise - noise.min()) / np.ptp(noise)
    still = np.stack([noise[:, 20:84]] * 4)
    moving = np.stack([noise[:, 20 - 2 * t : 84 - 2 * t] for t in range(4)])
    rgb = np.stack([still, moving])[:, None, None].repeat(3, 2)  # (B, V, C, T, H, W)
    mean, std = (np.array(of)[:, None, None, None] for of in (colour.IMAGENET_MEAN, colour.IMAGENET_STD))
    a, b = handmade.measure(torch.from_numpy((rgb - mean) / std).float()).numpy()
    assert a.shape == b.shape and np.isfinite(b).all()
    cells = a[:32].reshape(4, 8)
    assert np.allclose(cells[:, 0], 1) and np.allclose(cells[:, 1:], 0)  # all differences below 1/128
    assert (b[:32].reshape(4, 8)[:, 0] < 0.9).all()
    flow = len(a) - 2 * 36
    assert np.abs(a[flow:]).max() < 0.05
    right = b[flow : flow + 32].reshape(4, 8)
    assert (right[:, 3:5].sum(1) > 0.8 * right.sum(1)).all()  # directions around 0
    assert b[flow + 34] == pytest.approx(2, abs=0.3)  # the median speed, pixels a frame


def test_a_histogram_of_directions_is_numpys() -> None:
    rng = np.random.default_rng(0)
    angle, weight = rng.uniform(-np.pi, np.pi, (3, 5, 7)), rng.random((3, 5, 7))
    angle[0, 0, :2] = -np.pi, np.pi
    found = handmade._directions(angle, weight)
    for one, a, w in zip(found, angle, weight, strict=True):
        assert np.allclose(one, np.histogram(a, 8, (-np.pi, np.pi), weights=w)[0] / 35)
