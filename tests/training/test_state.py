"""What a checkpoint keeps of training comes back as it was; what a run logs can be read by TensorBoard."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from models.networks import to_channels_last
from pipelines.loader import to_device
from shards import InputError
from training.log import Log
from training.state import load_optimizer, save_optimizer, seed_step


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.Conv2d(3, 4, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Steps on gradients that depend on the step's number only."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


OPTIMIZERS = [
    lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3),
    lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_optimizer_goes_on_bit_for_bit(tmp_path, make, channels_last) -> None:
    first, path = network(), tmp_path / "optimizer.safetensors"
    to_channels_last(first, channels_last)
    optimizer = make(first.parameters())
    train(first, optimizer, range(3))
    rest = json.loads(json.dumps(save_optimizer(path, optimizer)))
    second = network(seed=1)
    to_channels_last(second, channels_last)
    second.load_state_dict(first.state_dict())
    fresh = make(second.parameters())
    load_optimizer(path, fresh, rest)
    train(first, optimizer, range(3, 6))
    train(second, fresh, range(3, 6))
    for expected, found in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, found)
        for state in (
            s for s in fresh.state[found].values() if torch.is_tensor(s) and s.shape == found.shape
        ):
            assert state.stride() == found.stride()  # else each step would be slower after resuming


def test_an_optimizer_that_never_stepped_comes_back(tmp_path) -> None:
    path, make = tmp_path / "optimizer.safetensors", OPTIMIZERS[0]
    rest = save_optimizer(path, make(network().parameters()))
    fresh = make(network().parameters())
    load_optimizer(path, fresh, json.loads(json.dumps(rest)))
    assert not fresh.state_dict()["state"]


def cut(path: Path, rest: dict) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def odd_key(path: Path, rest: dict) -> None:
    save_file(load_file(path) | {"nonsense": torch.zeros(1)}, path)


def fewer_parameters(path: Path, rest: dict) -> None:
    rest["param_groups"][0]["params"].pop()


def fewer_groups(path: Path, rest: dict) -> None:
    rest["param_groups"].clear()


@pytest.mark.parametrize("harm", [cut, odd_key, fewer_parameters, fewer_groups])
def test_another_optimizers_state_is_refused_in_one_line(tmp_path, harm) -> None:
    path, model, make = tmp_path / "optimizer.safetensors", network(), OPTIMIZERS[0]
    optimizer = make(model.parameters())
    train(model, optimizer, range(1))
    rest = save_optimizer(path, optimizer)
    harm(path, rest)
    with pytest.raises(InputError, match=r"optimizer\.safetensors does not hold") as caught:
        load_optimizer(path, make(network().parameters()), rest)
    assert "\n" not in str(caught.value)


def test_a_steps_random_numbers_depend_on_seed_step_and_process_alone() -> None:
    def sample_params(*numbers: int) -> tuple[float, ...]:
        torch.rand(7)
        seed_step(*numbers)
        return tuple(torch.rand(3).tolist())

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**31, 10**7, 999)]
    assert [sample_params(*place) for place in places] == [sample_params(*place) for place in places]
    assert len({sample_params(*place) for place in places}) == len(places)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_changes_strides_and_nothing_else(channels_last) -> None:
    model, plain = network(), network()
    to_channels_last(model, channels_last)
    for mine, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)
        if mine.ndim == 5:
            assert mine.is_contiguous(memory_format=torch.channels_last_3d) is channels_last
        if mine.ndim == 4:
            assert mine.is_contiguous(memory_format=torch.channels_last) is channels_last
    views = torch.randn(2, 2, 4, 4, 4, 3).permute(0, 1, 5, 2, 3, 4)
    batch = {"views": views, "pace": torch.tensor([[0, 1], [2, 3]]), "key": ["a", "b"], "epoch": 3}
    given = to_device(batch, torch.device("cpu"), channels_last=channels_last)
    assert given.keys() == {"views", "pace"} and torch.equal(given["views"], views)
    assert given["views"].is_contiguous() is not channels_last


def test_tensorboard_reads_what_was_logged_and_forgets_what_was_repeated(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    for begin, end in ((0, 3), (2, 4)):  # the second run goes on from step 2
        log = Log(tmp_path, begin, ("tensorboard",))
        for step in range(begin + 1, end + 1):
            log.write({"step": step, "loss": step / 2 + begin})
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}] + [
        {"step": step, "loss": step / 2 + 2} for step in (3, 4)
    ]
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in lines
    ]
