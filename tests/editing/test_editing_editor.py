from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from emu_edit.diffusion.guidance import Guidance
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import Sampler
from emu_edit.editing.editor import Editor
from emu_edit.editing.settings import EditorSettings, Sampling
from emu_edit.errors import InputError
from emu_edit.images import reflect_to_multiple, to_pil
from tests.editing.conftest import SETTINGS, make_editor, make_networks, picture


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (15, 23), (1, 1), (2, 31)])
def test_a_picture_of_any_size_keeps_its_size(editor: Editor, size: tuple[int, int]) -> None:
    edited = editor.edit(picture(*size), "make it red", task="local")
    assert edited.shape == (3, *size)
    assert edited.dtype == torch.uint8


def test_the_padding_mirrors_the_picture_and_keeps_every_pixel_of_it() -> None:
    image = picture(3, 5)[None]
    padded = reflect_to_multiple(image, 8)
    assert padded.shape == (1, 3, 8, 8)
    assert torch.equal(padded[..., :3, :5], image)
    assert torch.equal(padded[..., 3, :5], image[..., 1, :])  # one back from the last row
    assert torch.equal(padded[..., 5, :5], image[..., 1, :])  # and forth again
    assert torch.equal(padded[..., :3, 5], image[..., :, 3])


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(editor: Editor) -> None:
    first, again, other = (
        editor.edit(picture(), "make it red", task="local", seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_editing_leaves_the_global_random_state_alone(editor: Editor) -> None:
    before = torch.random.get_rng_state()
    editor.edit(
        picture(), "make it red", task="local", sampling=Sampling(sampler=Sampler.euler_ancestral)
    )
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("sampler", list(Sampler))
def test_a_picture_comes_out_the_same_alone_and_in_a_batch(
    editor: Editor, sampler: Sampler
) -> None:
    settings = replace(SETTINGS, sampler=sampler)
    images = torch.stack([picture(seed=seed) for seed in range(3)])
    texts = ["make it red", "a much longer instruction that needs many more tokens", "blur"]
    tasks = ["local", "add", "color"]
    together = editor.edit_batch(images, texts, tasks, [5, 6, 7], settings=settings)
    for i in range(3):
        alone = editor.edit_batch(
            images[i : i + 1], texts[i : i + 1], tasks[i : i + 1], [5 + i], settings=settings
        )
        # sums over more padding tokens round differently: one grey level at most
        assert (together[i].int() - alone[0].int()).abs().max() <= 1


def test_guidance_of_one_equals_the_plain_model_without_branches(editor: Editor) -> None:
    plain = editor.edit(picture(), "make it red", task="local", sampling=Sampling(None, 1.0, 1.0))
    almost = 1.0 + 1e-7
    assert all(Guidance(1.0, almost).needed)
    guided = editor.edit(
        picture(), "make it red", task="local", sampling=Sampling(None, 1.0, almost)
    )
    assert (plain.int() - guided.int()).abs().max() <= 1


def test_only_branches_with_a_weight_are_run(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = editor.networks.denoiser.forward

    def counting(z_t: Tensor, t: Tensor, cond: object) -> Tensor:
        rows.append(len(z_t))
        return forward(z_t, t, cond)  # type: ignore[arg-type]

    monkeypatch.setattr(editor.networks.denoiser, "forward", counting)
    for text, image in ((1.0, 1.0), (2.0, 1.0), (2.0, 1.5)):
        editor.edit(picture(), "make it red", task="local", sampling=Sampling(1, text, image))
    assert rows == [1, 2, 3]


def test_guidance_steps_and_sampler_of_a_call_override_the_models(editor: Editor) -> None:
    edit = partial(editor.edit, picture(), "make it red", task="local")
    default = edit()
    assert not torch.equal(default, edit(sampling=Sampling(None, 6.0, 1.0)))
    assert not torch.equal(default, edit(sampling=Sampling(num_steps=5)))
    assert not torch.equal(default, edit(sampling=Sampling(sampler=Sampler.euler_ancestral)))


def test_every_step_is_reported(editor: Editor) -> None:
    seen: list[tuple[int, int]] = []
    editor.edit(
        picture(),
        "make it red",
        task="local",
        sampling=Sampling(num_steps=3),
        on_step=lambda i, n: seen.append((i, n)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_pil_picture_is_edited_like_its_pixels(editor: Editor) -> None:
    pixels = picture()
    from_pil = editor.edit(to_pil(pixels), "make it red", task="local")
    assert torch.equal(from_pil, editor.edit(pixels, "make it red", task="local"))
    grey = Image.new("L", (9, 11), 40)
    assert editor.edit(grey, "make it red", task="local").shape == (3, 11, 9)


def test_an_untrained_change_model_with_a_silent_network_returns_the_source() -> None:
    networks = make_networks()
    with torch.no_grad():
        for parameter in networks.denoiser.unet.conv_out.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    editor = make_editor(networks, settings=replace(SETTINGS, guidance=Guidance(1.0, 1.0)))
    image = picture(13, 18)
    assert torch.equal(editor.edit(image, "make it red", task="local"), image)


def test_a_saved_editor_gives_the_same_pixels_and_settings(editor: Editor, tmp_path: Path) -> None:
    editor.save_pretrained(tmp_path / "model")
    loaded = Editor.from_pretrained(tmp_path / "model")
    assert loaded.settings == editor.settings
    assert loaded.prediction is editor.prediction
    assert loaded.schedule.content() == editor.schedule.content()
    image = picture(15, 18)
    first, second = (e.edit(image, "make it red", task="add", seed=9) for e in (editor, loaded))
    assert torch.equal(first, second)


@pytest.mark.parametrize("value", ["euler_ancestrol", 3, None])
def test_a_model_whose_settings_are_damaged_is_refused(value: object) -> None:
    values = {**SETTINGS.to_dict(), "sampler": value}
    with pytest.raises(InputError, match=r"x/model_index.json: sampler must be one of ddim"):
        EditorSettings.from_dict(values, where="x/model_index.json")


@pytest.mark.parametrize("value", ["20", True, None])
def test_a_model_whose_numbers_are_damaged_is_refused(value: object) -> None:
    values = {**SETTINGS.to_dict(), "num_steps": value}
    with pytest.raises(InputError, match="num_steps must be a number, got"):
        EditorSettings.from_dict(values, where="x")


def test_settings_survive_being_written_and_read() -> None:
    assert EditorSettings.from_dict(SETTINGS.to_dict(), where="x") == SETTINGS


@pytest.mark.parametrize("name", ["num_steps", "image_size"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        replace(SETTINGS, **{name: 0})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"guidance_image": float("inf")}, "guidance scales must be finite"),
    ],
)
def test_sampling_that_no_model_takes_is_refused_before_one_is_there(
    wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Sampling(**wanted)


def test_an_unknown_task_is_refused_with_the_nearest_name(editor: Editor) -> None:
    with pytest.raises(InputError, match=r"unknown task 'textures'.*Did you mean 'texture'"):
        editor.edit(picture(), "make it wood", task="textures")


@pytest.mark.parametrize(("text", "words"), [("  ", "is empty"), ("x" * 2001, "2001 characters")])
def test_an_unusable_instruction_is_refused(editor: Editor, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        editor.edit(picture(), text, task="local")


def test_eps_at_zero_terminal_snr_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be used with a zero-terminal-SNR schedule"):
        make_editor(prediction=Prediction.eps)


def test_sequences_of_different_length_are_refused(editor: Editor) -> None:
    with pytest.raises(ValueError, match="as many instructions, tasks and seeds as images"):
        editor.edit_batch(picture()[None], ["a", "b"], ["add"], [0])


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index.json"):
        Editor.from_pretrained(tmp_path)


def test_a_model_whose_two_files_disagree_is_refused(editor: Editor, tmp_path: Path) -> None:
    editor.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"sample"', '"epsilon"'))
    words = "prediction_type is 'epsilon', model_index.json says prediction change, .* 'sample'"
    with pytest.raises(InputError, match=words):
        Editor.from_pretrained(tmp_path / "model")
