"""What the loop's meter says of its metrics: means of scalars, and parts over their wholes."""

import pytest
import torch

from training.metrics import Meter


def test_scalars_are_averaged_and_parts_summed_before_they_are_divided() -> None:
    here, there = Meter(), Meter()
    here.add({"loss": torch.tensor(1.0), "right": torch.tensor([1, 4]), "never": torch.tensor([0, 0])})
    here.add({"loss": torch.tensor(2.0), "right": torch.tensor([2, 2]), "never": torch.tensor([0, 0])})
    there.add({"loss": torch.tensor(6.0), "right": torch.tensor([0, 0]), "never": torch.tensor([0, 0])})
    cpu = torch.device("cpu")
    means = here.means(here.sums(cpu) + there.sums(cpu))
    assert means == pytest.approx({"loss": 3.0, "right": 0.5})
