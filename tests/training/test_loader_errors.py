"""After an error of its threads the loader goes on where it was, or says that it cannot."""

import multiprocessing
import os
import shutil

import pytest
import torch

from objectives.vdim import VDIM
from pipelines.loader import Loader
from pipelines.sampler import TrainSampler
from shards import Dataset, InputError


def test_after_an_error_the_same_batch_comes_again(data, tmp_path) -> None:
    copy = shutil.copytree(data, tmp_path / "copy")
    spec, dataset = VDIM.view_spec(VDIM.small()), Dataset(copy)
    with Loader(Dataset(data), TrainSampler(dataset, dataset.select(), spec, 2)) as whole:
        expected = [next(whole) for _ in range(3)]
    tar = copy / dataset.column("shard")[0]
    content = tar.read_bytes()
    with Loader(dataset, TrainSampler(dataset, dataset.select(), spec, 2)) as loader:
        os.truncate(tar, 600)
        for _ in range(2):
            with pytest.raises(InputError, match="before the end of the video"):
                next(loader)
            assert loader.state_dict() == {"samples": 0}
        tar.write_bytes(content)
        for batch in expected:
            found = next(loader)
            assert found["key"] == batch["key"] and torch.equal(found["views"], batch["views"])
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_forked_process_is_told_that_the_loader_is_not_its_own(data) -> None:
    """It used to wait for ever for threads that are not there. What it does is noted in a pipe; its exit too must end."""
    spec, dataset = VDIM.view_spec(VDIM.small()), Dataset(data)
    with Loader(dataset, TrainSampler(dataset, dataset.select(), spec, 2)) as loader:
        next(loader)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)

        def child() -> None:
            for call in (lambda: next(loader), lambda: loader.load_state_dict({"samples": 0})):
                with pytest.raises(RuntimeError, match=f"belongs to process {os.getppid()}: make one"):
                    call()
            loader.close()
            sender.send("done")

        forked = context.Process(target=child)
        forked.start()
        forked.join(60)
        hung = forked.exitcode is None
        forked.kill()
        assert not hung and forked.exitcode == 0 and receiver.recv() == "done"
        assert len(next(loader)["key"]) == 2  # the parent's goes on
