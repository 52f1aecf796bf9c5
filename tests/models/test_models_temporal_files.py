"""The adapter's directory: the same video again on its base, and on no other."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.directory import TEMPORAL
from emu_edit.models.fingerprints import base_fingerprint
from emu_edit.models.inflate import Base, given_picture, inflate, unet_of
from emu_edit.models.temporal import TemporalSpec
from emu_edit.models.temporal_files import RECORD, WEIGHTS, load_temporal, save_temporal
from emu_edit.models.unet import PretrainedUNetDenoiser, UNetDenoiser
from tests.models.conftest import tiny_unet
from tests.models.tiny_bases import FORMATS, Picture, sd15, sdxl, trained


def twin(make: Callable[[], Picture], base: Base) -> Picture:
    """The same picture model in another object, as if loaded again."""
    again = make()
    again.base.load_state_dict(base.state_dict())
    return again


@pytest.fixture(scope="module")
def picture() -> Picture:
    return sd15()


@pytest.fixture(scope="module")
def saved(picture: Picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "temporal"
    save_temporal(trained(picture), folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "temporal"))


@torch.no_grad()
@pytest.mark.parametrize("make", FORMATS)
def test_a_saved_adapter_makes_the_same_video_again(
    make: Callable[[], Picture], tmp_path: Path, cpu_generator: torch.Generator
):
    picture = make()
    adapter = trained(picture)
    again = twin(make, picture.base)
    save_temporal(adapter, tmp_path / "temporal")
    loaded = load_temporal(tmp_path / "temporal", again.base)
    assert loaded.spec == adapter.spec
    z = torch.randn(6, 4, 8, 8, generator=cpu_generator)
    condition = given_picture(z[::3], 3)
    with adapter.video(3, condition), loaded.video(3, condition):
        assert torch.equal(again.draw(z), picture.draw(z))
    record = json.loads((tmp_path / "temporal" / RECORD).read_text())
    assert record["parameters"] == sum(p.numel() for p in adapter.parameters())


def test_saving_again_replaces_the_adapter_and_nothing_else(copy: Path, picture: Picture):
    before = sorted(path.name for path in copy.parent.iterdir())
    save_temporal(trained(picture), copy)
    assert sorted(path.name for path in copy.parent.iterdir()) == before
    unet_of(picture.base).save_pretrained(copy.parent / "unet")
    kept = {path: path.read_bytes() for path in (copy.parent / "unet").iterdir()}
    with pytest.raises(InputError, match=r"unet exists and is no temporal adapter; it is left"):
        save_temporal(trained(picture), copy.parent / "unet")
    assert {path: path.read_bytes() for path in (copy.parent / "unet").iterdir()} == kept


def test_a_model_directory_with_temporal_layers_is_not_replaced(model: Path, tmp_path: Path):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    editor = Editor.from_pretrained(folder, device="cpu")
    base = editor.networks.denoiser
    assert isinstance(base, UNetDenoiser)
    save_temporal(inflate(base, TemporalSpec(head_dim=8)), folder / TEMPORAL)
    assert Editor.from_pretrained(folder, device="cpu").networks is not None  # it stays a model
    with pytest.raises(InputError, match=r"has the temporal layers, which would be lost with its"):
        editor.save_pretrained(folder)
    load_temporal(folder / TEMPORAL, base)


def test_another_base_is_refused_by_hash_and_left_alone(saved: Path, picture: Picture):
    for other in (sd15(), sdxl()):
        found, named = (base_fingerprint(one.base)[:12] for one in (other, picture))
        with pytest.raises(InputError, match=f"trained on the base {named}, this one is {found}"):
            load_temporal(saved, other.base)
        assert not any(module._forward_hooks for module in other.base.modules())


def test_a_bfloat16_copy_is_the_same_base_and_a_changed_one_is_not():
    unet = tiny_unet()
    other = deepcopy(unet)
    with torch.no_grad():
        other.conv_out.weight[0] += 1
    assert base_fingerprint(other) != base_fingerprint(unet)
    assert base_fingerprint(deepcopy(unet).bfloat16()) == base_fingerprint(unet)


def test_a_stable_diffusion_loaded_twice_is_the_same_base(stable_diffusion: Path, tmp_path: Path):
    first, second = (PretrainedUNetDenoiser(str(stable_diffusion), 6) for _ in range(2))
    save_temporal(inflate(first, TemporalSpec(head_dim=4)), tmp_path / "temporal")
    load_temporal(tmp_path / "temporal", second)


def change_record(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps({**record, **entries}))

    return change


def change_spec(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        record["spec"].update(entries)
        (folder / RECORD).write_text(json.dumps(record))

    return change


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return rewrite


FIRST = "convolutions.conv_in.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / RECORD).unlink(), r"is no temporal adapter \(no temporal.json\)"),
        (lambda f: (f / RECORD).write_text("{"), r"temporal.json, which is not JSON"),
        (lambda f: (f / RECORD).write_text("[]"), r"temporal.json holds list, needs a JSON object"),
        (lambda f: (f / WEIGHTS).unlink(), r"cannot read .*temporal.safetensors"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x"), r"temporal.safetensors, which is no safetens"),
        (lambda f: (f / "more.bin").touch(), r"holds pickled weights \(more.bin\)"),
        (lambda f: (f / "code.py").touch(), r"holds Python \(code.py\)"),
        (change_record(version=2), r"temporal.json has version '2', this program reads 1"),
        (change_record(base="me"), r"temporal.json: base is 'me', needs 64 hexadecimal digits"),
        (change_record(spec=None), r"temporal.json: spec is no JSON object"),
        (change_spec(chunk="many"), r"temporal.json: chunk is many, which is of another kind"),
        (change_spec(kernel_size=99), r"temporal.json: temporal.kernel_size is 99, needs 1 to 15"),
        (change_spec(head_dim=6), r"temporal: the U-Net has attention of width 8, which temporal"),
        (change_spec(kernel_size=1), rf"{FIRST} is \(8, 8, 3\), needs \(8, 8, 1\)"),
        (change_spec(picture_condition=False), r"condition_in.weight is .*, needs nothing"),
        (change_weights(lambda t: t.pop(FIRST)), rf"{FIRST} is nothing, needs \(8, 8, 3\)"),
        (
            change_weights(lambda t: t.update(odd=t[FIRST].clone())),
            r"odd is \(8, 8, 3\), needs nothing",
        ),
        (
            change_weights(lambda t: t.update({FIRST: t[FIRST] * torch.nan})),
            rf"{FIRST} holds values that are not numbers",
        ),
        (change_weights(lambda t: t.update({FIRST: t[FIRST].int()})), rf"{FIRST} is of type 'I32'"),
    ],
)
def test_a_damaged_adapter_is_refused_in_a_line_and_the_base_left_alone(
    damage: Callable[[Path], object], message: str, copy: Path, picture: Picture
):
    damage(copy)
    hooks = [len(module._forward_hooks) for module in picture.base.modules()]
    with pytest.raises(InputError, match=message) as caught:
        load_temporal(copy, picture.base)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)
    assert [len(module._forward_hooks) for module in picture.base.modules()] == hooks
