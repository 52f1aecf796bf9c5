"""`fit --plan` says what a training takes before anything is loaded; and that is what it takes."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

from datamodules.stream.sampler import Layout
from emu_edit.cli.main import main
from emu_edit.editing.cost import GIBI, LiveBytes
from emu_edit.models.trust import read_header
from emu_edit.runs.options import config_arguments, find_config
from emu_edit.runs.plan import Place, PlannedCLI, judged, precision_of
from emu_edit.runs.trainer_cli import quiet, untrained_module
from emu_edit.training.memory import MemoryPlan, Part, count, kept_for_backward, longest_batch
from emu_edit.training.module import EditModule
from emu_edit.training.optim import adamw, copy_of, trainable
from emu_edit.training.sharding import blocks_of, network_of
from tests.runs.test_runs_configs import ON_A_CPU, PUBLISHED, WHOLE_NETWORK, skip_without_accelerate
from tests.training.stage import make_module

CPU = torch.device("cpu")
CHECKPOINTED = ("smoke", "--model.denoiser.gradient_checkpointing=true")
PICTURES, SIDE = 3, 32
PLAN = MemoryPlan(
    (Part("denoiser", is_trained=True, weights=GIBI // 4, bytes=GIBI),),
    gradients=GIBI,
    optimizer=("AdamW", 2 * GIBI),
    average=GIBI,
    buckets=GIBI,
    kept=3 * GIBI,
    work=GIBI,
    slack=2.0,
)
BASE = "--model.{}=emu_edit.models.{}"


def planned_module(recipe: str, *flags: str) -> EditModule:
    with quiet():
        arguments = [*config_arguments([find_config(recipe)]), *ON_A_CPU, *flags]
        module = PlannedCLI(arguments, Path("run")).model
    assert isinstance(module, EditModule)
    assert all(p.is_meta for p in module.networks.denoiser.parameters())
    return module


def counted(module: EditModule, precision: str = "32-true") -> MemoryPlan:
    plugin = precision_of(precision, CPU)
    return count(
        module, pictures=PICTURES, side=SIDE, precision=plugin, device=CPU, has_average=True
    )


@cache
def planned(*config: str, precision: str = "32-true") -> MemoryPlan:
    return counted(planned_module(*config), precision)


def loss(module: EditModule) -> torch.Tensor:
    return module.step(longest_batch(module, PICTURES, SIDE), dropout=module.dropout)["loss"]


def test_weights_gradients_optimizer_and_average_are_those_of_the_real_training() -> None:
    plan, real = planned("smoke"), untrained_module("smoke")
    parts = {
        "denoiser": real.networks.denoiser,
        "text encoder": real.networks.text_encoder,
        "codec": real.networks.codec,
        "task table": real.networks.task_embedding,
    }
    for part in plan.parts:
        weights = [p for p in parts[part.name].parameters() if p.requires_grad == part.is_trained]
        assert part.weights == sum(p.numel() for p in weights)
        assert part.bytes == sum(p.nbytes for p in weights)
    optimizer = adamw(real, real.optimizer_settings)
    loss(real).backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert plan.optimizer == ("AdamW", sum(value.nbytes for value in states))
    assert plan.gradients == sum(
        p.grad.nbytes for p in trainable(real).values() if p.grad is not None
    )
    assert plan.average == sum(copy.nbytes for copy in copy_of(real).values())


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (("smoke",), "32-true"),
        (CHECKPOINTED, "32-true"),
        (("smoke",), "bf16-mixed"),
    ],
)
def test_activations_are_what_autograd_keeps_and_what_lives_in_a_real_step(config, given) -> None:
    precision = precision_of(given, CPU)
    plan, real = planned(*config, precision=given), untrained_module(*config)
    precision.convert_module(real)
    for parameter in trainable(real).values():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveBytes() as live:
        with precision.forward_context():
            result, kept = kept_for_backward(real, lambda: loss(real))
        result.backward()
    assert plan.kept == pytest.approx(kept, rel=0.0 if given == "32-true" else 0.01)
    assert plan.kept + plan.work == pytest.approx(live.most, rel=0.1)


def test_a_parted_network_takes_its_share_and_the_blocks_that_are_gathered() -> None:
    def of(shards: int, given: str = "32-true") -> MemoryPlan:
        plugin, module = precision_of(given, CPU), make_module()
        return count(module, pictures=2, side=SIDE, precision=plugin, device=CPU, shards=shards)

    whole, half, network = of(1), of(2), network_of(make_module().networks.denoiser)
    parted = sum(p.nbytes for p in network.parameters())
    blocks = [sum(p.nbytes for p in block.parameters()) for block in blocks_of(network)]
    assert sum(blocks) > 0.5 * parted  # most is in blocks, of which there are several
    assert max(blocks) < 0.5 * parted
    assert half.gathered == parted - sum(blocks) + 4 * max(blocks)
    odd = len(list(network.parameters())) * 4  # bytes that do not divide
    assert whole.gradients - half.gradients == pytest.approx(parted / 2, abs=odd)
    (_, means), (_, part) = whole.optimizer, half.optimizer
    assert means is not None
    assert part is not None
    assert means - part == pytest.approx(parted, abs=2 * odd)
    assert whole.parts[0].bytes - half.parts[0].bytes == pytest.approx(parted / 2, abs=odd)
    assert whole.parts[0].weights == half.parts[0].weights
    assert whole.parts[1:] == half.parts[1:]
    assert (whole.kept, whole.gathered) == (half.kept, 0)
    # autocast would keep the weights it has cast; gathered ones are cast themselves, and given up
    copied, cut = of(1, "bf16-mixed"), of(2, "bf16-mixed")
    assert copied.kept - cut.kept > 0.3 * parted
    assert 2 * cut.gathered == half.gathered
    assert (cut.gradients, cut.optimizer) == (half.gradients, half.optimizer)


def test_checkpointing_keeps_less_and_works_more() -> None:
    whole, checkpointed = planned("smoke"), planned(*CHECKPOINTED)
    assert checkpointed.kept < 0.7 * whole.kept
    assert checkpointed.work > whole.work


def test_half_precision_halves_the_weights_but_not_their_average() -> None:
    whole, half = counted(make_module()), counted(make_module(), "bf16-true")
    assert [2 * part.bytes for part in half.parts] == [part.bytes for part in whole.parts]
    assert 2 * half.gradients == whole.gradients
    assert half.average == whole.average  # float32
    assert half.kept < whole.kept


def plan(*flags: str, config: str = "smoke") -> int:
    return main(["fit", f"--config={config}", *ON_A_CPU, "--plan", *flags])


def test_it_prints_and_leaves_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--run=r", "--resume=auto", "--trainer.devices=2") == 0  # no folder is taken
    shown = capsys.readouterr()
    first, _, *rows, verdict = shown.out.splitlines()
    assert first == "on each of 2 x cpu: 8 pictures of 32x32 pixels at a time, 32-true"
    assert [row.split("  ")[0] for row in rows] == [
        "denoiser, trained",
        "text encoder, trained",
        "task table, trained",
        "gradients",
        "optimizer (AdamW)",
        "average of the weights (Ema)",
        "exchange of gradients (ddp)",
        "kept for the backward pass",
        "at work beside it",
        "room for libraries, allocator",
        "in all",
    ]
    assert verdict.startswith("fits: ")
    assert shown.err == ""
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "verdict"),
    [
        (14.0, "fits: 14.0 GiB of the 14.0 GiB that are free"),
        (10.0, "10.0 GiB are free; lower data.micro_batch to 2, which leaves optimizer steps as"),
        (6.2, "6.2 GiB are free; lower data.image_size, now 64, and data.micro_batch to 1; or set"),
        (5.0, "5.0 GiB are free; lower the 6.0 GiB without any picture: a smaller model"),
        (None, "needs 14.0 GiB on each device; how much is free there nobody says"),
    ],
)
def test_the_verdict_says_what_to_lower(free: float | None, verdict: str, monkeypatch) -> None:
    bytes = None if free is None else round(free * GIBI)
    monkeypatch.setattr("emu_edit.runs.plan.free_memory", lambda _device: bytes)
    place = Place(CPU, missing=False, indices=(0,), machines=1)
    fits, line = judged(PLAN, place, Layout(8, accumulate=2, world=1), 64)
    assert fits == (free in {14.0, None})
    assert verdict in line


@pytest.mark.parametrize(
    ("devices", "indices"),
    [([0, 1], (0, 1)), ("0,1", (0, 1)), ("3,", (3,)), (2, (0, 1)), ("2", (0, 1)), ("auto", (0,))],
)
def test_devices_are_counted_however_they_are_given(devices, indices) -> None:
    trainer = Namespace(accelerator="cpu", devices=devices, num_nodes=2)
    place = Place.of(trainer)
    assert (place.indices, place.world) == (indices, 2 * len(indices))


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu_edit.runs.plan.count", lambda *_, **__: PLAN)


@pytest.mark.usefixtures("workplace", "uncounted")
def test_what_does_not_fit_is_status_71(monkeypatch, capsys) -> None:
    monkeypatch.setattr("emu_edit.runs.plan.free_memory", lambda _device: 0)
    assert plan() == 71
    assert capsys.readouterr().out.splitlines()[-1].startswith("does not fit: ")


@pytest.mark.usefixtures("workplace", "uncounted")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has one")
def test_for_a_device_that_is_elsewhere_it_says_what_is_needed(capsys) -> None:
    assert plan("--trainer.accelerator=gpu", "--trainer.devices=8") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("on each of 8 x accelerator: 2 pictures of 32x32")
    assert "this machine has no such device" in shown.splitlines()[-1]


def based_on(folder: Path) -> list[str]:
    slots = {
        "denoiser": "unet.PretrainedUNetDenoiser",
        "text_encoder": "text.TransformersText",
        "codec": "codec.KLCodec",
    }
    return [
        option
        for slot, kind in slots.items()
        for option in (BASE.format(slot, kind), f"--model.{slot}.path={folder}")
    ]


@pytest.mark.slow
def test_of_a_pretrained_model_only_configs_are_read(
    stable_diffusion: Path, tmp_path: Path, workplace: Path, capsys
) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(stable_diffusion, folder)
    flags = ["--data.train=shards", "--data.image_size=16", "--data.micro_batch=2"]
    assert plan(*flags, *based_on(folder), config="sd15") == 0
    whole = capsys.readouterr().out
    for file in folder.rglob("*.safetensors"):
        header = int.from_bytes(file.read_bytes()[:8], "little")
        file.write_bytes(file.read_bytes()[: 8 + header])
        assert read_header(file)
    assert plan(*flags, *based_on(folder), config="sd15") == 0
    cut = capsys.readouterr().out
    assert cut.splitlines()[:-1] == whole.splitlines()[:-1]
    assert "text encoder, frozen" in cut
    assert list(workplace.iterdir()) == []


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("recipe", PUBLISHED)
def test_transformers_and_their_text_encoders_are_planned(recipe: str, tmp_path, capsys) -> None:
    skip_without_accelerate(recipe)
    write, options, _ = PUBLISHED[recipe]
    write(tmp_path / "base")
    slots = ("denoiser", "text_encoder", "codec")
    flags = [f"--model.{slot}.path={tmp_path}/base" for slot in slots]
    flags += [*options, "--data.train=shards", "--data.image_size=16"]
    assert plan(*flags, config=recipe) == 0
    whole = capsys.readouterr()
    assert whole.err == ""
    assert "denoiser, trained" in whole.out
    assert "denoiser, frozen" not in whole.out
    if WHOLE_NETWORK not in options:
        return  # a U-Net, which has no LoRA
    pytest.importorskip("peft")
    assert plan(*flags, "--model.denoiser.lora_rank=2", config=recipe) == 0
    assert "denoiser, frozen" in capsys.readouterr().out


def test_a_model_of_ours_is_planned_with_its_maps(model: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "ours"
    shutil.copytree(model, folder)
    maps = folder / "tasks" / "tasks.safetensors"
    maps.write_bytes(maps.read_bytes()[:-4])
    denoiser = [BASE.format("denoiser", "unet.PretrainedUNetDenoiser")]
    denoiser += [f"--model.denoiser.path={folder}", "--model.denoiser.task_dim=8"]
    assert plan(*denoiser, "--model.text_encoder.dim=16", "--model.codec.patch=4") == 0
    assert "denoiser, trained" in capsys.readouterr().out


def test_what_cannot_be_planned_is_one_line(
    tmp_path: Path, workplace: Path, monkeypatch, capsys
) -> None:
    def refused(words: str, *flags: str, status: int = 78, config: str = "smoke") -> None:
        assert plan(*flags, config=config) == status
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.count("\n") == 1
        assert words in shown.err

    sd = ["--data.train=shards"]
    refused("no config.json, needs the unet", *sd, *based_on(tmp_path), config="sd15")
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "HTTP_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        "socket.create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError())
    )
    refused(
        "cannot get nobody/nothing",
        *sd,
        *based_on(Path("nobody/nothing")),
        config="sd15",
        status=74,
    )
    refused("begins with a whole model", config="emu_video")
    refused("trainer.strategy=fsdp parts it", "--trainer.strategy=fsdp")
    refused("does not know trainer.precision", "--trainer.precision=transformer-engine")
    refused("does not divide data.global_batch", "--data.micro_batch=3")
    refused("multiples of", "--data.image_size=30")
    assert list(workplace.iterdir()) == []
