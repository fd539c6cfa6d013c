"""Slipstream in Python: features of files, the loader in somebody's own loop, webdataset's reader."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import slipstream
from evaluation import context, settings
from shards.build.pool import Limits
from shards.build.process_video import Processing
from shards.build.run import build, prepare
from shards.video.encode import Encoding
from tests.evaluation.conftest import save
from tests.evaluation.rendered import Video, render, write_set

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = [Video(label, "train", 12 + number) for label in range(3) for number in range(4)]
    return write_set(tmp_path_factory.mktemp("data") / "colours", videos)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos, one shorter than a clip."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((40, 7, 25)):
        render(folder / f"{number}.mp4", Video(number, "train", frames, bright_from=frames // 2), number)
    return sorted(folder.glob("*.mp4"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import objectives

    folder = tmp_path_factory.mktemp("runs")
    dpc, pace, memdpc = (objectives.get(name).Config for name in ("dpc", "pace", "memdpc"))
    small = {"width": 0.05, "size": 34, "blocks": 3, "frames": 2, "stride": 2, "pred_steps": 1}
    return {
        "dpc": save("dpc", dpc(**small), folder / "dpc"),
        "pace": save("pace", pace(backbone="r3d", width=0.05, size=32, frames=8), folder / "pace"),
        "flow": save("memdpc", memdpc(**small, modality="flow"), folder / "flow"),
    }


@pytest.mark.parametrize("method", ["dpc", "pace"])
def test_features_of_files_are_those_of_their_shards(
    method: str, runs: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    """Two ways: embed_videos; and make_shards, then evaluate.py embed. DPC looks at ten frames a second, every second of 20."""
    found = slipstream.load(runs[method]).embed_videos(files)
    made_shards(files[0].parent, tmp_path / "set", fps=20 if method == "dpc" else None)
    chosen = settings.Embed(
        checkpoint=str(runs[method]), data=tmp_path / "set", to=tmp_path / "x.npy", per="video", cache=tmp_path / "cache"
    )  # fmt: skip
    context.embed(chosen)
    keys = (tmp_path / "x.txt").read_text().split()
    order = np.argsort(keys)
    assert found.dtype == np.float32 and found.shape[0] == 3 and found.std(0).max() > 1e-4
    np.testing.assert_allclose(found, np.load(tmp_path / "x.npy")[order], atol=1e-5)


def made_shards(source: Path, out: Path, fps: float | None) -> None:
    job = prepare(source, out, Processing(Encoding(fps=fps)))
    build(job, Limits(workers=1))


def test_what_cannot_be_embedded_is_one_line(
    runs: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    model = slipstream.load(runs["pace"])
    (tmp_path / "page.mp4").write_text("<html>404</html>" * 20)
    for bad in (tmp_path / "page.mp4", tmp_path / "nowhere.mp4"):
        with pytest.raises(slipstream.InputError, match=bad.name) as caught:
            model.embed_videos([files[0], bad])
        assert "\n" not in str(caught.value)
    with pytest.raises(slipstream.InputError, match="at least one"):
        model.embed_videos([])
    with pytest.raises(slipstream.InputError, match="flow"):
        slipstream.load(runs["flow"]).embed_videos(files)


def test_the_documented_loop_trains_torchvisions_network(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/guides/python.md, on our data, with fewer pixels and steps."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/guides/python.md").read_text(), re.S)
    for theirs, ours in {
        '"data/ucf101"': repr(str(data)),
        "split1:train": "train",
        "size=112": "size=32",
        "batch_size=8": "batch_size=2",
        "range(1000)": "range(2)",
        "step % 10 == 0": "True",
    }.items():
        assert theirs in code, theirs
        code = code.replace(theirs, ours)
    exec(compile(code, "docs/guides/python.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["0", "1"] and all(0 < float(line[1]) < 20 for line in lines)


def test_a_loader_goes_back_to_where_its_state_was_taken(data: Path) -> None:
    spec = slipstream.ViewSpec(offsets=((0, 1, 2, 3),), size=16)
    with slipstream.Loader(data, spec, 5, seed=3) as loader:
        assert loader.steps_per_epoch == 2
        first = [next(loader) for _ in range(2)]
        state = loader.state_dict()
        third = next(loader)
        loader.load_state_dict(state)
        again = next(loader)
    assert [batch["epoch"] for batch in (*first, third)] == [0, 0, 1]
    assert third["key"] == again["key"] and torch.equal(third["views"], again["views"])
    assert len({key for batch in first for key in batch["key"]}) == 10


def test_processes_of_a_launcher_share_each_batch(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = slipstream.ViewSpec(offsets=((0, 1),), size=16)
    with slipstream.Loader(data, spec, 6) as loader:
        whole = next(loader)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with slipstream.Loader(data, spec, 3) as loader:
            parts.append(next(loader))
    assert parts[0]["key"] + parts[1]["key"] == whole["key"]
    assert torch.equal(torch.cat([part["views"] for part in parts]), whole["views"])


def test_webdatasets_reader_sees_what_lies_in_the_tars(data: Path) -> None:
    dataset = slipstream.Dataset(data)
    with tarfile.open(data / dataset.shards[0]) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}
    found = {f"{s['__key__']}.{end}": s[end] for s in dataset.webdataset() for end in ("mp4", "json", "cls")}
    assert found == members
    some = [sample["__key__"] for sample in dataset.webdataset(rows=[2, 5])]
    assert some == dataset.keys([2, 5])


def test_what_takes_seconds_to_import_waits_until_it_is_needed() -> None:
    code = """
import sys, train, evaluate, objectives
objectives.available()
slow = {"torchvision", "torch._dynamo", "sklearn", "scipy", "matplotlib", "nvidia.dali"}
assert not slow & sys.modules.keys(), slow & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_needs_no_torch() -> None:
    code = "import sys, slipstream.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = slipstream.nothing
