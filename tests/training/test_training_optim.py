import math
import re
from copy import deepcopy

import pytest
import torch
from torch import nn

from emu_edit.errors import InputError
from emu_edit.models.surgery import channels_last
from emu_edit.training.optim import (
    OptimizerSettings,
    adamw,
    parameter_groups,
    warmup_cosine,
    warmup_cosine_schedule,
)
from tests.training.stage import make_module


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.2),
        (1, 0.4),
        (3, 0.8),
        (4, 1.0),
        (6, (1 + math.cos(math.pi / 4)) / 2),
        (8, 0.5),
        (12, 0.0),
        (99, 0.0),
    ],
)
def test_the_rate_rises_linearly_then_falls_along_half_a_cosine(step, factor):
    assert warmup_cosine(step, warmup_steps=4, total_steps=12) == pytest.approx(factor, abs=1e-12)


def test_without_warmup_the_first_step_has_the_peak_rate():
    assert warmup_cosine(0, warmup_steps=0, total_steps=10) == 1.0


def test_the_schedule_sets_the_rate_of_each_optimizer_step():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = warmup_cosine_schedule(optimizer, warmup_steps=1, total_steps=3)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.25, 0.5, 0.25, 0.0])


def test_training_without_an_end_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(InputError, match=re.escape("set trainer.max_epochs")):
        warmup_cosine_schedule(optimizer, warmup_steps=0, total_steps=math.inf)


def test_only_matrices_and_convolutions_outside_tables_decay():
    module = make_module()
    decayed, kept = parameter_groups(module, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in module.named_parameters()}
    kept_names = {names[id(p)] for p in kept["params"]}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    assert "networks.task_embedding.table" in kept_names
    assert {name for name in kept_names if "shared" in name or "relative_attention_bias" in name}
    assert all(name.endswith(".weight") for name in decayed_names)
    assert not [name for name in decayed_names if "norm" in name or "shared" in name]
    assert "networks.denoiser.unet.conv_in.weight" in decayed_names
    assert kept_names | decayed_names == {
        name for name, p in module.named_parameters() if p.requires_grad
    }
    assert len(decayed["params"]) + len(kept["params"]) == len(kept_names | decayed_names)


def test_the_optimizer_is_fused_and_has_the_given_settings():
    settings = OptimizerSettings(lr=0.3, weight_decay=0.2, betas=(0.5, 0.6), warmup_steps=0)
    optimizer = adamw(nn.Linear(2, 2), settings)
    assert optimizer.defaults["fused"] is True
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.3, (0.5, 0.6), 0.2),
        (0.3, (0.5, 0.6), 0.0),
    ]


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="every parameter of the model is frozen"):
        adamw(nn.Linear(2, 2).requires_grad_(False), OptimizerSettings())


@pytest.mark.parametrize(
    ("mean", "found"),
    [
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(2, 1), r"\(2, 1\)"),  # would be stretched to the weight's shape
        ("x", "str"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_running_mean_that_is_not_of_its_weight_is_refused_by_name(mean, found, name):
    module = nn.Linear(2, 2)
    optimizer = adamw(module, OptimizerSettings())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    memory = optimizer.state_dict()
    adamw(module, OptimizerSettings()).load_state_dict(memory)  # as it is, it is taken
    memory["state"][0][name] = mean
    words = rf"^the optimizer's {name} of weight is {found}, needs \(2, 2\)$"
    with pytest.raises(ValueError, match=words):
        adamw(module, OptimizerSettings()).load_state_dict(memory)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "optimizer.lr must be above 0, got 0.0"),
        ({"lr": math.nan}, "optimizer.lr must be above 0, got nan"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay must be at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas must be in [0, 1), got [0.9, 1.0]"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        OptimizerSettings(**values)


def test_memory_that_lies_otherwise_than_its_weight_goes_on_with_it():
    def made() -> tuple[nn.Conv2d, torch.optim.AdamW]:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(0)
            conv = channels_last(nn.Conv2d(4, 6, 3))
        return conv, adamw(conv, OptimizerSettings(lr=0.1))

    def step(conv: nn.Conv2d, optimizer: torch.optim.AdamW, power: int) -> None:
        optimizer.zero_grad()
        conv(torch.linspace(-1, 1, 200).view(2, 4, 5, 5)).pow(power).sum().backward()
        optimizer.step()

    whole, resumed = made(), made()
    step(*whole, power=2)
    state = deepcopy(whole[1].state_dict())
    for memory in state["state"].values():  # as a sharded training writes it
        memory |= {name: memory[name].contiguous() for name in ("exp_avg", "exp_avg_sq")}
    resumed[0].load_state_dict(whole[0].state_dict())
    resumed[1].load_state_dict(state)
    for pair in (whole, resumed):
        step(*pair, power=4)
    assert torch.equal(resumed[0].weight, whole[0].weight)
