"""Videos edited by a stack: windows that share frames, any length, resumed to the same frames."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.eve import VideoStack
from emu_edit.editing.settings import Sampling
from emu_edit.images import save_png
from emu_edit.models.eve import Mode
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.io import open_video
from emu_edit.video.noise import NoiseMode, frame_noise
from emu_edit.video.stacked import StackedStage, load_video_model, video_editor
from emu_edit.video.windows import Shot
from tests.training.eve_stage import write_parts
from tests.training.video_stage import FRAMES, SIZE

TURN = VideoTurn("make the square white", "local", seed=3)
PLAIN = VideoSettings(threshold=None)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of an edit adapter and temporal layers, plugged together."""
    folder = tmp_path_factory.mktemp("stack")
    edits, moves = write_parts(folder)
    joined = VideoStack.join(Editor.from_pretrained(edits, "cpu"), moves / "temporal", "it")
    joined.save_pretrained(folder / "model")
    return folder / "model"


def shots(count: int, cuts: tuple[int, ...] = (0,)) -> list[Shot]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return [Shot(frame, number, number in cuts) for number, frame in enumerate(frames[:count])]


def edited(editor: VideoEditor, video: list[Shot]) -> dict[int, Tensor]:
    return {shot.number: shot.pixels for shot in editor.edit(video)}


def stacked(path: Path) -> VideoEditor:
    return video_editor(load_video_model(path, "cpu"), [TURN], PLAIN)


def test_every_length_comes_out_whole_and_in_order(stack: Path) -> None:
    for count in range(1, 9):
        assert [*edited(stacked(stack), shots(count))] == [*range(count)]


def test_the_first_frame_is_the_editors_own(stack: Path) -> None:
    found = edited(stacked(stack), shots(FRAMES))
    model = load_video_model(stack, "cpu")
    assert isinstance(model, VideoStack)
    latents = model.editor.encode(shots(FRAMES)[0].pixels[None])
    noise = frame_noise(NoiseMode.independent, TURN.seed, [0], latents.shape[1:])
    first = model.window(
        latents,
        latents[:0],
        TURN.instruction,
        model.editor.networks.task_vectors(["local"]),
        noise=noise,
        settings=model.editor.settings,
        mode=Mode.edit_teacher,
    )
    assert torch.equal(found[0], model.editor.decode(first, (SIZE, SIZE))[0])


def test_a_longer_video_begins_as_a_shorter_one_and_memory_stays(stack: Path) -> None:
    editor, seen = stacked(stack), 0
    for shot in shots(20):
        editor.push(shot)
        (stage,) = editor.stages
        assert isinstance(stage, StackedStage)
        seen = max(seen, len(stage.known), len(stage.sources))
    assert seen <= 2 * FRAMES
    whole = edited(stacked(stack), shots(20))
    part = edited(stacked(stack), shots(20)[:FRAMES])
    assert all(torch.equal(whole[i], part[i]) for i in range(FRAMES - 1))


def test_what_is_not_wanted_may_be_said_in_more_words_than_what_is(stack: Path) -> None:
    guided = Sampling(guidance_text=3.0)
    asked = [
        VideoTurn("dig", "local", negative=words, sampling=guided, seed=3)
        for words in ("", "a very long list of things that nobody would want to see in a video")
    ]
    model = load_video_model(stack, "cpu")
    found = [edited(video_editor(model, [turn], PLAIN), shots(FRAMES)) for turn in asked]
    assert not all(torch.equal(found[0][i], found[1][i]) for i in range(FRAMES))


def test_a_cut_ends_what_is_known(stack: Path) -> None:
    both = edited(stacked(stack), shots(10, (0, 5)))
    later = [Shot(shot.pixels, shot.number, shot.number == 5) for shot in shots(10)[5:]]
    alone = edited(stacked(stack), later)
    assert all(torch.equal(both[i], alone[i]) for i in range(5, 10))


def test_it_goes_on_where_its_state_was_taken(stack: Path) -> None:
    whole = edited(stacked(stack), shots(9))
    for stop in (2, 4, 7):
        first, found = stacked(stack), {}
        for shot in shots(9)[:stop]:
            found |= {done.number: done.pixels for done in first.push(shot)}
        again = stacked(stack)
        again.restore(first.state())
        for shot in shots(9)[stop:]:
            found |= {done.number: done.pixels for done in again.push(shot)}
        found |= {done.number: done.pixels for done in again.flush()}
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[i], whole[i]) for i in whole)


def test_the_verb_edits_with_all_that_a_model_has(stack: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for shot in shots(5):
        save_png(folder / f"{shot.number}.png", shot.pixels)
    words = ["video", str(folder), TURN.instruction, "--task", "local", "--seed", "3"]
    more = ["--model", str(stack), "--device", "cpu", "--no-threshold", "--no-cuts"]
    assert main([*words, *more, "-o", str(tmp_path / "out.png")]) == 0
    drawn = [frame.pixels for frame in open_video(tmp_path / "out.png").frames()]
    expected = edited(stacked(stack), shots(5))
    assert all(torch.equal(drawn[i], expected[i]) for i in range(5))
