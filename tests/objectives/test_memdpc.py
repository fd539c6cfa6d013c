"""MemDPC against the paper's equations, computed again from the model's weights."""

from itertools import product

import pytest
import torch
from dense_reference import slow
from test_dpc import clips, flat, mlp
from torch import Tensor

from objectives.memdpc import MemDPC, MemDPCConfig, memory_usage
from shards import InputError

TINY = {"width": 0.05, "size": 64, "memory_size": 8}


def tiny(**options: object) -> MemDPC:
    torch.manual_seed(0)
    objective = MemDPC(MemDPCConfig(**(TINY | options)))  # type: ignore[arg-type]
    with torch.no_grad():  # away from the uniform p of the beginning
        for parameter in (*objective.phi.parameters(), *objective.aggregators.parameters()):
            parameter.mul_(10)
    return objective


def slow_predictions(objective: MemDPC, z: Tensor, steps: int, direction: str) -> tuple[Tensor, Tensor]:
    """Eq. 2 to 4 block by block, dropout off: ẑ and p."""
    aggregator = objective.aggregators[direction]
    state = torch.zeros_like(z[:, 0])
    for t in range(z.shape[1] - steps):
        state = aggregator.step(z[:, t].clamp(min=0), state)
    predicted, ps = [], []
    for _ in range(steps):
        p = torch.softmax(mlp(objective.phi, state), 1)
        slots = objective.memory.slots
        predicted.append(sum(p[:, k, None] * slots[k, :, None, None] for k in range(len(slots))))
        ps.append(p)
        state = aggregator.step(predicted[-1].clamp(min=0), state)
    return torch.stack(predicted, 1), torch.stack(ps, 1)


def test_parameters_are_the_papers_to_the_unit() -> None:
    with torch.device("meta"):
        objective = MemDPC(MemDPCConfig(network="resnet34"))
    assert sum(p.numel() for p in objective.parameters()) == 33_801_280


@pytest.mark.parametrize(
    ("options", "B"),
    [
        ({}, 2),
        ({"directions": "forward"}, 2),
        ({"directions_loss": "sum"}, 1),
        ({"critic": "cosine", "temperature": 0.2}, 2),
        ({"blocks": 5, "pred_steps": 2, "size": 96, "frames": 2}, 2),
    ],
)
@torch.no_grad()
def test_the_loss_is_equation_6_of_each_direction(options: dict, B: int) -> None:
    objective = tiny(**options).eval()
    config = objective.config
    views = clips(B, config.blocks, size=config.size, T=config.frames)
    z = torch.stack([objective.encoder(views[:, v]) for v in range(config.blocks)], 1)
    losses, critic = {}, {"cosine": config.critic == "cosine"}
    if config.critic == "cosine":
        critic["temperature"] = config.temperature
    for name in objective.aggregators:
        seen = z if name == "forwards" else torch.stack([z[:, -1 - v] for v in range(config.blocks)], 1)
        predicted, _ = slow_predictions(objective, seen, config.pred_steps, name)
        losses[name] = slow(flat(predicted), flat(seen[:, -config.pred_steps :]), **critic)["loss"]
    out = objective({"views": views})
    total = sum(losses.values()) / (1 if config.directions_loss == "sum" else len(losses))
    assert float(out.loss) == pytest.approx(total, rel=1e-3)
    for name, loss in losses.items():
        assert float(out.metrics[f"loss_{name}"]) == pytest.approx(loss, rel=1e-3)


@torch.no_grad()
def test_predictions_are_convex_combinations_of_the_memories() -> None:
    objective = tiny().eval()
    z = objective.encode(clips(2))
    predicted, log_p = objective.predict(z[:, :5])
    p = log_p.exp()
    torch.testing.assert_close(p.sum(2), torch.ones_like(p[:, :, 0]))
    torch.testing.assert_close(predicted, torch.einsum("bnkhw,kd->bndhw", p, objective.memory.slots))
    expected, slow_p = slow_predictions(objective, z, 3, "forwards")
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p, slow_p, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_flipped_blocks_and_exchanged_grus_exchange_the_two_losses() -> None:
    objective, views = tiny().eval(), clips(2)
    before = objective({"views": views}).metrics
    forwards, backwards = objective.aggregators["forwards"], objective.aggregators["backwards"]
    objective.aggregators["forwards"], objective.aggregators["backwards"] = backwards, forwards
    after = objective({"views": views.flip(1)}).metrics
    assert float(after["loss_forwards"]) == pytest.approx(float(before["loss_backwards"]), rel=2e-5)
    assert float(after["loss_backwards"]) == pytest.approx(float(before["loss_forwards"]), rel=2e-5)
    assert float(before["loss_forwards"]) != pytest.approx(float(before["loss_backwards"]), rel=1e-4)


@torch.no_grad()
def test_c_t_never_sees_later_blocks() -> None:
    objective, views = tiny().eval(), clips(1)
    before = objective.context(views)
    for t in range(1, 8):
        changed = views.clone()
        changed[:, t:] += 1
        after = objective.context(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t], rtol=1e-4, atol=1e-6)


OPTIONS = [
    {"directions": d, "directions_loss": r, "critic": c, "gradient_checkpointing": g}
    for d, r, c, g in product(("both", "forward"), ("mean", "sum"), ("dot", "cosine"), (False, True))
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_parameter_gets_a_gradient(options: dict) -> None:
    objective = tiny(blocks=3, pred_steps=2, frames=1, **options)
    objective({"views": clips(2, V=3, T=1)}).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_gradients_flow_into_targets_and_memory() -> None:
    objective, views = tiny(directions="forward").eval(), clips(2).requires_grad_()
    objective({"views": views}).loss.backward()
    assert views.grad is not None and all(views.grad[:, v].any() for v in range(8))
    assert objective.memory.slots.grad is not None and objective.memory.slots.grad.any(1).all()


def test_the_curriculum_predicts_further() -> None:
    objective = tiny(curriculum=(10,), frames=1)
    for step, places in ((9, 24), (10, 32)):
        objective.begin_step(step)
        assert round(1 / float(objective({"views": clips(2, T=1)}).metrics["chance"])) == places


def test_memory_usage_by_hand() -> None:
    """Two predictions over four slots: one certain of slot 0, one torn between 0 and 1."""
    p = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]).clamp(min=1e-30)
    usage = memory_usage(p.log().reshape(2, 1, 4, 1, 1))
    ln = torch.tensor([0.75, 0.25])
    assert float(usage["entropy"]) == pytest.approx(torch.tensor(2.0).log().item() / 2)
    assert float(usage["usage_entropy"]) == pytest.approx(-float((ln * ln.log()).sum()))
    assert float(usage["dead_slots"]) == 0.5
    even = memory_usage(torch.full((1, 1, 4, 1, 1), 0.25).log())
    assert float(even["entropy"]) == pytest.approx(float(even["usage_entropy"])) == pytest.approx(1.3862944)


def test_flow_is_an_input() -> None:
    assert MemDPC.view_spec(MemDPCConfig()).modality == "rgb"
    spec = MemDPC.view_spec(MemDPCConfig(modality="flow"))
    assert (spec.modality, spec.channels, spec.span) == ("flow", 3, 118)
    assert spec.jitter is not None and spec.jitter.grey == 0.25  # frame-wise for flow too (section 5.2)


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--memory-size", {"memory_size": 1}),
        ("--temperature", {"temperature": 0.0}),
        ("--pred-steps", {"pred_steps": 8}),
    ],
)
def test_bad_settings_name_their_flag(flag: str, options: dict) -> None:
    with pytest.raises(InputError, match=flag):
        MemDPCConfig(**options)
