import errno
import pickle
import re
from pathlib import Path

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch.testing import assert_close

from callbacks.ema import Ema
from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.tasks import SIXTEEN
from emu_edit.training.checkpoint_io import DurableCheckpointIO, read_checkpoint
from emu_edit.training.export import export_checkpoint, export_model
from emu_edit.training.module import EditModule
from emu_edit.training.optim import EMA_STATE_KEY, trainable, with_weights
from emu_edit.training.stored import load_ema, load_module
from tests.training.stage import (
    TRAINER_WARNINGS,
    Squares,
    make_batch,
    make_module,
    make_trainer,
    train_step,
)

# Lightning 2.6's own command line calls what jsonargparse 4.53 deprecates
DEPRECATED = "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
pytestmark = [pytest.mark.filterwarnings(line) for line in (*TRAINER_WARNINGS, DEPRECATED)]
CONFIG = Path(__file__).with_name("tiny.yaml")


class Cli(LightningCLI):
    def _parse_ckpt_path(self) -> None:
        """Keep the config as it is, as our own command line does."""


PAGE = CONFIG.parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[EditModule, Path]:
    return train_by_config(tmp_path_factory.mktemp("trained"))


def train_by_config(folder: Path, *options: str) -> tuple[EditModule, Path]:
    """Train two steps through Lightning's command line; return the module and its checkpoint."""
    root = f"--trainer.default_root_dir={folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["x", "fit", f"--config={CONFIG}", root, *options])
        cli = Cli(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
        )
    assert isinstance(cli.model, EditModule)
    return cli.model, next(folder.rglob("last.ckpt"))


def is_primitive(value: object) -> bool:
    match value:
        case dict():
            return all(is_primitive(key) and is_primitive(entry) for key, entry in value.items())
        case list():
            return all(is_primitive(entry) for entry in value)
    return value is None or type(value) in {str, int, float, bool}


def test_a_checkpoint_holds_the_config_as_primitives_and_no_frozen_weights(trained):
    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert is_primitive(dict(checkpoint["hyper_parameters"]))
    assert checkpoint["hyper_parameters"]["denoiser"]["init_args"]["channels"] == [16, 16]
    assert checkpoint["tasks"] == ["local", "add", "style"]
    assert {name.split(".")[1] for name in checkpoint["state_dict"]} == {
        "denoiser",
        "text_encoder",
        "task_embedding",
    }


def test_frozen_parts_are_dropped_by_prefix_buffers_included():
    module = make_module()
    module.networks.codec.register_buffer("mean_colour", torch.zeros(3))
    assert "networks.codec.mean_colour" in dict(module.named_buffers())
    assert [name for name in module.state_dict() if "codec" in name] == []


def test_a_module_is_built_again_from_its_checkpoint_with_equal_outputs(trained):
    module, path = trained
    again = load_module(path)
    assert not again.training
    batch = make_batch([0, 1])
    with torch.no_grad():
        assert torch.equal(train_step(again, batch)["error"], train_step(module, batch)["error"])


def test_an_exported_model_gives_the_pixels_of_the_averaged_module(trained, tmp_path):
    module, path = trained
    export_checkpoint(path, tmp_path / "model")
    batch = make_batch([0, 1])
    names, seeds = ["local", "add"], [3, 4]
    exported = Editor.from_pretrained(tmp_path / "model").edit_batch(
        batch.source, list(batch.instruction), names, seeds
    )
    average = load_ema(path)
    assert average is not None
    own = load_module(path)
    with with_weights(own, average):
        direct = own.make_editor().edit_batch(batch.source, list(batch.instruction), names, seeds)
    assert torch.equal(exported, direct)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_model(module, tmp_path / "raw", ema=None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("ema", [True, False])
def test_several_checkpoints_export_as_the_mean_of_their_weights(ema, trained, tmp_path):
    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    first = trainable(load_module(path))
    for shift, name in ((1.0, "second"), (5.0, "third")):
        average = checkpoint["callbacks"][EMA_STATE_KEY]["average"]
        for part in (average, checkpoint["state_dict"]):
            for key in first:
                part[key] = part[key] + shift
        torch.save(checkpoint, tmp_path / name)
    # shifts of 0, 1 and 1 + 5 have a mean of 7/3
    others = [tmp_path / "second", tmp_path / "third"]
    export_checkpoint(path, tmp_path / "model", ema=ema, others=others)
    export_checkpoint(path, tmp_path / "one", ema=ema)
    mean, one = (
        Editor.from_pretrained(tmp_path / name).networks.denoiser.state_dict()
        for name in ("model", "one")
    )
    for key, weight in one.items():
        torch.testing.assert_close(mean[key], weight + 7 / 3)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("prediction", "z0", "other was trained with prediction z0 and .* with change;"),
        ("zero_terminal_snr", False, "other was trained with last noise level 0.99"),
    ],
)
def test_networks_that_say_different_things_have_no_mean(trained, tmp_path, setting, value, said):
    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"].get(setting) != value
    checkpoint["hyper_parameters"][setting] = value
    torch.save(checkpoint, tmp_path / "other")
    with pytest.raises(InputError, match=said):
        export_checkpoint(path, tmp_path / "model", others=[tmp_path / "other"])
    assert not (tmp_path / "model").exists()


def test_stages_that_weighted_their_errors_differently_have_a_mean(trained, tmp_path):
    _, path = trained
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["balance"] = 0.5
    torch.save(checkpoint, tmp_path / "other")
    export_checkpoint(path, tmp_path / "model", others=[tmp_path / "other"])
    assert Editor.from_pretrained(tmp_path / "model").networks.denoiser is not None


def test_exporting_the_average_of_a_run_without_one_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert load_ema(tmp_path / "a.ckpt") is None
    with pytest.raises(InputError, match="has no averaged weights"):
        export_checkpoint(tmp_path / "a.ckpt", tmp_path / "model")


def test_a_checkpoint_without_a_config_cannot_be_rebuilt_and_says_so(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), datamodule=Squares(steps=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="stores no config"):
        load_module(tmp_path / "a.ckpt")


def test_a_checkpoint_of_another_task_table_is_refused(trained, tmp_path):
    _, path = trained
    with pytest.raises(
        InputError, match=re.escape("trained for other tasks: it knows ['local', 'add', 'style']")
    ):
        load_module(path, tasks=SIXTEEN)
    other = make_module(tasks=["local", "add", "text"])
    with pytest.raises(InputError, match=r"set model\.tasks to the checkpoint's list"):
        make_trainer(tmp_path, plugins=[DurableCheckpointIO()]).validate(
            other, datamodule=Squares(), ckpt_path=path
        )


def test_a_checkpoint_of_another_network_is_refused_by_name_and_shape(trained):
    _, path = trained
    checkpoint = read_checkpoint(path)
    checkpoint["state_dict"]["networks.task_embedding.table"] = torch.zeros(3, 9)
    message = "networks.task_embedding.table is (3, 9) in it, (3, 8) in the config"
    with pytest.raises(InputError, match=re.escape(message)):
        make_module().on_load_checkpoint(checkpoint)


def test_a_config_that_no_longer_fits_the_program_is_refused_in_one_line(trained, tmp_path):
    _, path = trained
    checkpoint = read_checkpoint(path)
    checkpoint["hyper_parameters"]["sharpness"] = 3
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(InputError, match="its config does not build a model") as caught:
        load_module(tmp_path / "old.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["missing", "text", "truncated", "bare pickle", "code", "tensor", "folder"]
)
def test_what_is_no_checkpoint_is_refused_in_one_line(trained, tmp_path, kind):
    path = tmp_path / "x.ckpt"
    match kind:
        case "text":
            path.write_text("hello")
        case "truncated":
            path.write_bytes(trained[1].read_bytes()[:20_000])
        case "code":
            torch.save({"state_dict": print}, path)
        case "bare pickle":
            path.write_bytes(pickle.dumps({"state_dict": {}}))
        case "tensor":
            torch.save(torch.zeros(2), path)
        case "folder":
            path.mkdir()
    words = {
        "missing": "no checkpoint at",
        "folder": "no checkpoint at",
        "code": "holds more than tensors and primitives",
        "tensor": "not a training checkpoint",
    }
    with pytest.raises(
        InputError, match=words.get(kind, "is truncated or not a checkpoint")
    ) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_loading_with_code_allowed_is_refused(trained):
    with pytest.raises(ValueError, match="weights_only=False would run code"):
        DurableCheckpointIO().load_checkpoint(trained[1], weights_only=False)


def test_a_save_that_fails_midway_keeps_the_previous_file_and_leaves_no_rest(tmp_path, monkeypatch):
    store = DurableCheckpointIO()
    store.save_checkpoint({"state_dict": {}, "n": 1}, tmp_path / "a.ckpt")

    def full_disk(_: object, file) -> None:
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(
        InputError,
        match=r"not written \(ENOSPC No space left on device\); the previous one is kept",
    ):
        store.save_checkpoint({"state_dict": {}, "n": 2}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["n"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.ckpt.json"]


def test_a_removed_checkpoint_is_gone_and_removing_it_again_is_fine(tmp_path):
    store = DurableCheckpointIO()
    store.save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    store.remove_checkpoint(tmp_path / "a.ckpt")
    store.remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty"
)  # that is the point
def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(tmp_path):
    def run(ckpt_path: Path | None, seed: int) -> tuple[EditModule, Ema]:
        module, ema = make_module(weights_seed=seed), Ema()
        keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(
            tmp_path,
            ema,
            keep,
            max_epochs=2,
            enable_checkpointing=True,
            plugins=[DurableCheckpointIO()],
        )
        trainer.fit(module, datamodule=Squares(steps=3), ckpt_path=ckpt_path, weights_only=True)
        return module, ema

    whole, whole_ema = run(None, 0)
    resumed, resumed_ema = run(tmp_path / "kept" / "epoch=0.ckpt", 1)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
    assert whole_ema.average is not None
    assert resumed_ema.average is not None
    assert whole_ema.num_updates == resumed_ema.num_updates == 6
    assert_close(resumed_ema.average, whole_ema.average, rtol=0, atol=0)
    assert EMA_STATE_KEY in read_checkpoint(tmp_path / "kept" / "epoch=0.ckpt")["callbacks"]


def test_the_lines_of_the_docs_make_a_module_and_an_editor_of_a_checkpoint(trained):
    module, path = trained
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found: dict = {}
    exec(lines.replace("runs/RUN/checkpoints/last.ckpt", str(path)), found)
    for name, weight in trainable(module).items():
        assert torch.equal(found["module"].get_parameter(name), weight), name
    batch = make_batch([0])
    edited = found["editor"].edit_batch(batch.source, list(batch.instruction), ["local"], [0])
    assert edited.shape == batch.source.shape
