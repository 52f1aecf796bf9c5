"""Other optimizers by their class: refused in a line, trained with, gone on with, counted."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emu_edit.cli.main import main
from emu_edit.editing.cost import bytes_of
from emu_edit.errors import BrokenCheckpointError, ExitStatus, InputError
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint, size_of
from emu_edit.training.export import load_module
from emu_edit.training.memory import count
from emu_edit.training.module import EditModule
from emu_edit.training.optim import OptimizerSettings, make_optimizer, trainable
from tests.datamodules.toy import SaveEverything
from tests.training.stage import TRAINER_WARNINGS, Squares, make_module, make_trainer

TINY = Path(__file__).parent / "tiny.yaml"
TORCHAO, BITSANDBYTES = "torchao.optim.AdamW8bit", "bitsandbytes.optim.AdamW8bit"
pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]


class Stubborn(torch.optim.SGD):
    """An optimizer that makes no step on this device."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing but complain."""
        raise NotImplementedError(closure)


@pytest.fixture(autouse=True)
def _uncompiled() -> Iterator[None]:
    """Leave torchao's step, which compiles itself, uncompiled: a compiler takes half a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


def settings(kind: str, **more: Any) -> OptimizerSettings:
    if kind in {TORCHAO, BITSANDBYTES}:
        pytest.importorskip(kind.rpartition(".")[0], reason="needs the extra `quantised`")
    return OptimizerSettings(lr=1e-3, warmup_steps=0, kind=kind, **more)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "AdamW"}, "optimizer.kind=AdamW needs the module of the class: torch.optim.SGD"),
        ({"kind": "no_such.AdamW"}, "kind=no_such.AdamW: no module no_such; install its package"),
        ({"kind": "torch.optim.Addam"}, "torch.optim has no Addam. Did you mean 'Adam'?"),
        ({"kind": "torch.nn.Linear"}, "is no optimizer, which would derive from torch.optim"),
        ({"kind": "torch.optim.lr_scheduler"}, "kind=torch.optim.lr_scheduler is no optimizer"),
        (
            {"kind": "torch.optim.SGD", "arguments": {"momentun": 0.9}},
            "optimizer.kind=torch.optim.SGD takes no momentun. Did you mean 'momentum'?",
        ),
        (
            {"kind": "torch.optim.SGD", "arguments": {"lr": 0.9}},
            "optimizer.arguments.lr: give it as optimizer.lr",
        ),
        ({"kind": "torch.optim.SGD", "betas": (0.5, 0.9)}, "SGD takes no betas; leave out"),
        ({"kind": "torch.optim.Rprop"}, "takes no weight_decay; set optimizer.weight_decay to 0"),
        ({"arguments": {"momentum": 0.9}}, "optimizer.arguments need optimizer.kind, the class"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused_in_a_line(values, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        OptimizerSettings(**values)
    assert "\n" not in str(caught.value)


def test_what_an_optimizer_itself_refuses_is_one_line():
    chosen = settings("torch.optim.SGD", arguments={"momentum": -1.0})
    with pytest.raises(InputError, match=r"^optimizer.kind=torch.optim.SGD: Invalid momentum"):
        make_optimizer(nn.Linear(2, 2), chosen)


def test_the_class_gets_the_settings_it_takes_and_the_arguments():
    layer = nn.Linear(2, 2)
    sgd = make_optimizer(
        layer, settings("torch.optim.SGD", weight_decay=0.2, arguments={"momentum": 0.9})
    )
    assert type(sgd) is torch.optim.SGD
    decayed, kept = sgd.param_groups
    assert (decayed["params"], kept["params"]) == ([layer.weight], [layer.bias])
    assert [(g["lr"], g["weight_decay"], g["momentum"]) for g in (decayed, kept)] == [
        (1e-3, 0.2, 0.9),
        (1e-3, 0.0, 0.9),
    ]
    adam = make_optimizer(layer, settings("torch.optim.NAdam", betas=(0.5, 0.6)))
    assert adam.param_groups[0]["betas"] == (0.5, 0.6)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("torch.optim.SGD", {"momentum": 0.9}), (TORCHAO, None), (BITSANDBYTES, None)],
)
def test_a_stopped_training_ends_as_one_that_was_not(kind, arguments, tmp_path):
    chosen = settings(kind, arguments=arguments)
    whole, again = make_module(optimizer=chosen), make_module(optimizer=chosen, weights_seed=1)
    plugin = DurableCheckpointIO()
    saving = SaveEverything(tmp_path)
    make_trainer(tmp_path, saving, max_epochs=2, plugins=plugin).fit(
        whole, datamodule=Squares(steps=2)
    )
    make_trainer(tmp_path, max_epochs=2, plugins=plugin).fit(
        again, datamodule=Squares(steps=2), ckpt_path=str(tmp_path / "epoch-0.ckpt")
    )
    start, ours, theirs = (
        one.state_dict() for one in (make_module(optimizer=chosen), whole, again)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not all(torch.equal(ours[name], start[name]) for name in ours)
    with pytest.raises(InputError, match=rf"optimizer is {kind}, the config's AdamW; set model"):
        make_trainer(tmp_path, plugins=plugin).fit(
            make_module(), datamodule=Squares(steps=2), ckpt_path=str(tmp_path / "epoch-0.ckpt")
        )


def real_states(module: EditModule) -> list[Any]:
    optimizer = make_optimizer(module, module.optimizer_settings)
    for parameter in trainable(module).values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return [value for state in optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("kind", ["torch.optim.Adafactor", TORCHAO, BITSANDBYTES])
def test_the_plan_counts_what_another_optimizer_remembers(kind):
    chosen = settings(kind)
    kept = [one for one in real_states(make_module(optimizer=chosen)) if isinstance(one, Tensor)]
    plan = counted(chosen)
    assert plan.optimizer == (kind.rpartition(".")[2], bytes_of(kept))
    if kind == TORCHAO:  # a checkpoint's size, too; their type says more
        assert size_of(kept) == pytest.approx(bytes_of(kept), rel=0.2)
        assert bytes_of(kept) < 0.8 * sum(value.nbytes for value in kept)


def counted(chosen: OptimizerSettings) -> Any:
    from lightning.pytorch.plugins.precision import Precision

    module = make_module(optimizer=chosen)
    cpu = torch.device("cpu")
    return count(module, pictures=2, side=16, precision=Precision(), device=cpu)


def test_the_plan_says_where_it_cannot_count():
    plan = counted(settings(f"{__name__}.Stubborn"))
    assert plan.optimizer == ("Stubborn", None)
    row = next(row for row in str(plan).splitlines() if "Stubborn" in row)
    assert re.fullmatch(r"optimizer \(Stubborn\) +not counted +0\.000", row)
    assert math.isfinite(plan.total())


def test_a_recipe_names_another_optimizer_by_flags(workplace, capsys):
    flags = ["--model.optimizer.kind=torch.optim.SGD", "--model.optimizer.arguments.momentum=0.5"]
    common = ["fit", f"--config={TINY}", "--score_pairs=0", "--no_predictor", "--run=run"]
    assert main([*common, *flags]) == 0
    (file,) = workplace.glob("run/**/last.ckpt")
    (states,) = read_checkpoint(file)["optimizer_states"]
    assert {name for state in states["state"].values() for name in state} == {"momentum_buffer"}
    module = load_module(file)
    assert module.optimizer_settings.arguments == {"momentum": 0.5}
    capsys.readouterr()
    misspelt = ["--run=other", "--model.optimizer.kind=torch.optim.SDG"]
    assert main([*common, *misspelt]) == ExitStatus.config
    error = capsys.readouterr().err.splitlines()[-1]
    assert "optimizer.kind=torch.optim.SDG: torch.optim has no SDG. Did you mean 'SGD'?" in error


def test_a_checkpoint_of_torchao_is_read_only_where_it_is(tmp_path, monkeypatch):
    kept = real_states(make_module(optimizer=settings(TORCHAO)))
    states = [{"state": {0: {"exp_avg": kept[1]}}, "param_groups": []}]
    torch.save({"state_dict": {}, "optimizer_states": states}, tmp_path / "x.ckpt")
    known = torch.serialization.get_safe_globals()

    def load(name: str) -> None:
        assert name == "torchao.optim"
        torch.serialization.add_safe_globals(known)

    torch.serialization.clear_safe_globals()
    monkeypatch.setattr("emu_edit.training.checkpoint_io.import_module", load)
    read_checkpoint(tmp_path / "x.ckpt")
    torch.serialization.clear_safe_globals()
    monkeypatch.setattr("emu_edit.training.checkpoint_io.find_spec", lambda _name: None)
    try:
        with pytest.raises(BrokenCheckpointError, match=r"\(torchao.optim.subclass_8bit"):
            read_checkpoint(tmp_path / "x.ckpt")
    finally:
        load("torchao.optim")
