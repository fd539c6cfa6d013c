"""Colour as users write it: normalised as the spec's, drawn once for what the spec's scope holds together."""

from dataclasses import replace

import pytest
import torch

from benchmarks.loader.dataloader_peer import color_jitter, jittered
from pipelines import colour
from pipelines.views import Jitter, ViewSpec

STILL = Jitter(0.0, 0.0, 0.0, 0.0, probability=1.0, grey=0.0)
STRONG = Jitter(0.9, 0.9, 0.9, 0.4, probability=1.0, grey=0.0)
SPEC = ViewSpec(offsets=((0, 1, 2), (3, 4, 5)), size=8, jitter=STILL)


def test_without_strength_it_normalises_as_the_spec_does() -> None:
    frames = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = color_jitter(SPEC)
    assert transform is not None
    matrix = torch.tensor(colour.normalise(), dtype=torch.float32)
    expected = torch.einsum("cp,fphw->fchw", matrix[:3, :3], frames.float()) + matrix[:3, 3:, None]
    torch.testing.assert_close(jittered(transform, frames, SPEC), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scope", "draws"), [("clip", 1), ("view", 2), ("frame", 6)])
def test_a_draw_for_what_the_scope_holds(scope: str, draws: int) -> None:
    spec = replace(SPEC, jitter=STRONG, colour_scope=scope)
    frames = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8).expand(6, -1, -1, -1).contiguous()
    transform = color_jitter(spec)
    assert transform is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = jittered(transform, frames, spec)
    assert len({tuple(frame.flatten().tolist()) for frame in made}) == draws


def test_specs_without_jitter_have_none() -> None:
    assert color_jitter(replace(SPEC, jitter=None)) is None
    assert color_jitter(replace(SPEC, jitter=None, lab_drop=True)) is None
