"""What is said of a memory's slots, against the network asked directly."""

import json

import numpy as np
import pytest
import torch

import evaluate
import objectives
from pipelines.eval_clips import EvalClips, EvalSampler
from pipelines.loader import Loader
from shards import Dataset


@pytest.fixture(scope="module")
def found(memory_run, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ACCELERATE_USE_CPU", "true")
        where = ["--cache", folder / "cache", "--output", folder / "out"]
        flags = ["--checkpoint", memory_run, "--data", data, "--device", "cpu", "--no-baselines", *where]
        evaluate.main(["retrieval", *map(str, flags)])
    with np.load(folder / "out/memory.npz") as memory:
        return json.loads((folder / "out/result.json").read_text()), {n: memory[n] for n in memory.files}


def test_use_and_clips_of_the_slots_are_those_of_the_network(found, memory_run, data) -> None:
    result, memory = found
    objective, dataset = objectives.load(memory_run), Dataset(data)
    down = objective.downstream()
    windows = EvalClips.of(dataset, range(12), down.spec, down.train)  # the training videos
    p = np.empty((len(windows), 8))
    for batch in Loader(dataset, EvalSampler(dataset, windows, down.spec, 4)):
        with torch.inference_mode():
            z = objective.encode(batch["views"]).relu()
            context = objective.aggregators["forwards"](z)[:, -1]
            p[batch["index"]] = objective.phi(context).softmax(1).mean((2, 3))
    assert np.allclose(memory["usage"], p.mean(0), atol=1e-5) and memory["usage"].sum() == pytest.approx(1)
    assert memory["slot"].tolist() == np.argsort(-p.mean(0))[:6].tolist()
    assert np.allclose(memory["norm"], objective.memory.slots.detach().norm(dim=1))
    for slot, keys, starts, shares in zip(
        *(memory[name] for name in ("slot", "key", "start", "share")), strict=True
    ):
        best = {}  # of each video its best window
        for place in np.argsort(-p[:, slot]):
            best.setdefault(dataset.keys([windows.row[place]])[0], place)
        wanted = list(best.items())[:3]
        assert keys.tolist() == [key for key, _ in wanted]
        assert starts.tolist() == [windows.start[place] for _, place in wanted]
        assert np.allclose(shares, [p[place, slot] for _, place in wanted], atol=1e-5)
    assert memory["p"].shape == (12, 8) and memory["label"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert result["windows"]["span"] == down.spec.span


def test_networks_without_a_memory_have_none(run) -> None:
    assert not hasattr(objectives.load(run), "addresses")
