"""A directory somebody gives is judged as a whole before any library opens it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emu_edit.editing.find import RELEASED
from emu_edit.errors import InputError
from emu_edit.models.trust import MOST_DEPTH, judge_directory


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the released model, to spoil."""
    return Path(shutil.copytree(RELEASED, tmp_path / "model"))


def changed(file: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_the_released_model_and_a_tiny_stable_diffusion_are_taken(stable_diffusion):
    judge_directory(RELEASED, is_ours=True)
    judge_directory(stable_diffusion)


@pytest.mark.parametrize("name", ["evil.py", "unet/diffusion_pytorch_model.bin", "tasks/a.pt"])
def test_files_that_run_code_are_refused_by_name(copy, name):
    (copy / name).write_bytes(b"x")
    place = re.escape(Path(name).name)
    with pytest.raises(
        InputError, match=rf"\({place}\), which can run code; .* safetensors and JSON"
    ):
        judge_directory(copy, is_ours=True)


def test_a_download_may_hold_pickles_beside_its_safetensors_but_no_python(
    stable_diffusion, tmp_path
):
    folder = Path(shutil.copytree(stable_diffusion, tmp_path / "sd"))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    judge_directory(folder)
    (folder / "unet" / "modeling.py").write_text("")
    with pytest.raises(InputError, match=r"holds Python \(modeling.py\), which can run code"):
        judge_directory(folder)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "predictor/text_encoder/config.json",
    ],
)
def test_a_config_that_names_python_is_refused_wherever_it_lies(copy, name):
    changed(copy / name, lambda value: value.update(auto_map={"AutoTokenizer": ["a.B", None]}))
    with pytest.raises(InputError, match=r"'auto_map' names Python code to run"):
        judge_directory(copy)


def test_an_adapter_that_redirects_is_refused(copy):
    (copy / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    with pytest.raises(InputError, match=r"adapter_config.json makes transformers load another"):
        judge_directory(copy)


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.safetensors", "/a.safetensors", 3])
def test_an_index_may_name_safetensors_beside_it_only(copy, shard):
    index = copy / "text_encoder" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"shared.weight": shard}}))
    with pytest.raises(InputError, match=r"needs safetensors files of the same folder"):
        judge_directory(copy)


def test_quantized_weights_are_refused(copy):
    changed(copy / "unet/config.json", lambda v: v.update(quantization_config={"bits": 4}))
    with pytest.raises(InputError, match=r"'quantization_config' needs a quantization library"):
        judge_directory(copy)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unet", "layers_per_block", 10**6),
        ("unet", "layers_per_block", [1, 2, 10**6]),
        ("unet", "block_out_channels", [10**9]),
        ("text_encoder", "num_layers", 10**5),
        ("text_encoder", "d_model", 2**40),
        ("text_encoder", "layer_norm_epsilon", 1e300),
        ("predictor/text_encoder", "num_layers", -(10**5)),
    ],
)
def test_a_network_of_absurd_size_is_refused_before_it_is_built(copy, name, key, value):
    changed(copy / name / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(InputError, match=rf"config.json: {key} is .*, needs a number up to"):
        judge_directory(copy)


def test_an_unknown_class_is_refused(copy):
    changed(copy / "model_index.json", lambda v: v.update(unet=["evil", "UNet2DConditionModel"]))
    with pytest.raises(InputError, match=r"unet is \['evil'"):
        judge_directory(copy)
    changed(copy / "model_index.json", lambda v: v.update(unet=["diffusers", "FluxTransformer"]))
    with pytest.raises(InputError, match=r"unet is a 'FluxTransformer', needs one of"):
        judge_directory(copy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), r"brackets in brackets"),
        ("[" * 100_000, r"brackets in brackets"),
        ('{"a": NaN}', r"which is not JSON: NaN is not a number"),
        ('{"a": 1' + "0" * 5000 + "}", r"is not JSON: .*digits"),
        ("{", r"is not JSON"),
        (" " * 2**20 + "{}", r"more than 1048576 bytes"),
        ("[]", r"holds list, needs a JSON object"),
    ],
)
def test_json_is_bounded_in_size_depth_and_numbers(copy, text, message):
    (copy / "unet" / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        judge_directory(copy)


def test_a_tokenizer_that_makes_texts_explode_is_refused(copy):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}

    def many(value: Any) -> None:
        value["normalizer"] = {"type": "Sequence", "normalizers": [double] * 12}

    changed(copy / "tokenizer/tokenizer.json", many)
    with pytest.raises(InputError, match=r"rewrites a text 12 times, at most 4"):
        judge_directory(copy)
    changed(
        copy / "tokenizer/tokenizer.json",
        lambda value: value.update(normalizer={**double, "content": "a" * 9}),
    )
    with pytest.raises(InputError, match=r"puts 'aaaaaaaaa' into a text, more than 4 letters"):
        judge_directory(copy)


def test_a_tokenizer_at_which_the_library_panics_is_refused_before(copy):
    file = copy / "tokenizer/tokenizer.json"
    changed(file, lambda value: value["post_processor"]["special_tokens"].clear())
    with pytest.raises(InputError, match=r"its template names '</s>', which it does not list"):
        judge_directory(copy)
    changed(file, lambda value: value.update(post_processor=None))
    changed(file, lambda value: value["model"].update(continuing_subword_prefix="a"))
    with pytest.raises(InputError, match=r"merges with a continuing_subword_prefix"):
        judge_directory(copy)


@pytest.mark.parametrize("kind", ["I64", "BOOL", "F8_E4M3", None, ["F32"]])
def test_weights_that_are_no_plain_numbers_are_refused_by_name(copy, kind):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    header = json.dumps({"conv_in.bias": {"dtype": kind, "shape": [1], "data_offsets": [0, 8]}})
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(InputError, match=r"conv_in.bias is of type .*, needs one of F16, BF16"):
        judge_directory(copy)


def test_a_file_that_is_none_is_refused(copy):
    (copy / "unet" / "config.json").unlink()
    (copy / "unet" / "config.json").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"config.json is no plain file"):
        judge_directory(copy)
