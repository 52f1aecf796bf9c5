import pytest
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from emu_edit.editing.editor import Editor
from emu_edit.editing.large import WHOLE, Large, Way, parse_large, way_for
from emu_edit.editing.pipeline import EmuEditPipeline
from emu_edit.editing.session import EditSession, TurnSettings, replay
from emu_edit.editing.threshold import keep_unchanged, mean_difference
from emu_edit.editing.upsampling import with_change
from emu_edit.errors import InputError
from emu_edit.images import resize
from tests.editing.conftest import picture

LOCAL = TurnSettings(task="local")
TILES = Large(Way.tiles)


@pytest.mark.parametrize(
    ("asked", "size", "way"),
    [
        (None, (16, 16), "whole"),
        (None, (20, 200), "whole"),  # the shorter side counts
        (None, (21, 200), "guided:16"),
        ("guided", (17, 40), "guided:16"),
        ("guided", (16, 40), "whole"),
        ("guided:32", (33, 40), "guided:32"),
        ("tiles", (16, 40), "tiles:16"),
        ("tiles:40", (16, 40), "whole"),
        ("whole", (99, 99), "whole"),
    ],
)
def test_the_size_and_the_wish_decide_the_way(
    asked: str | None, size: tuple[int, int], way: str
) -> None:
    made = way_for(None if asked is None else parse_large(asked), size, 16)
    assert str(made) == way
    assert way_for(parse_large(way), size, 16) == made  # as a replay reads it


def test_a_photograph_is_sketched_in_tiles_unless_they_were_too_many(
    editor: Editor, cpu_generator: torch.Generator
) -> None:
    noisy = torch.randint(256, (3, 40, 64), dtype=torch.uint8, generator=cpu_generator)
    for image, task, way in (
        (noisy, "sketch", "tiles:16"),
        (noisy, "style", "guided:16"),
        (torch.zeros_like(noisy), "sketch", "guided:16"),  # a drawing: lines to a picture, maybe
        (noisy[:, :16, :16], "sketch", "whole"),
    ):
        session = EditSession.start(editor, image).edit("draw it", TurnSettings(task=task))
        assert session.turns[0].large == way
        asked = editor.edit(image, "draw it", task=task, large=parse_large(way))
        assert torch.equal(editor.edit(image, "draw it", task=task), asked)
    assert str(way_for(None, (21, 16 * 16), 16, is_local=True)) == "tiles:16"
    assert str(way_for(None, (20, 16 * 16 + 1), 16, is_local=True)) == "whole"
    assert str(way_for(None, (21, 16 * 16 + 1), 16, is_local=True)) == "guided:16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tile", "unknown way 'tile' of editing a large picture; known: .*Did you mean 'tiles'"),
        ("tiles:x", "'x' is no number of pixels; write e.g. tiles:128"),
        ("tiles:0", "large tiles:0: a size of at least 1 goes with guided and tiles"),
        ("whole:64", "large whole:64: a size of at least 1 goes with guided and tiles"),
    ],
)
def test_what_is_no_way_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_large(text)


def test_pictures_of_the_models_size_are_edited_as_ever(editor: Editor) -> None:
    for size in ((16, 16), (13, 20)):
        image = picture(*size)
        plain = editor.edit_batch(image[None], ["make it red"], ["local"], [3])[0]
        for large in (None, WHOLE, Large(Way.guided), Large(Way.tiles, 20)):
            made = editor.edit(image, "make it red", task="local", seed=3, large=large)
            assert torch.equal(made, plain)


def test_a_large_picture_gets_the_change_of_its_copy(editor: Editor, pipe: EmuEditPipeline) -> None:
    image = picture(50, 40)
    small = resize(image, (20, 16))
    wanted = with_change(image, small, editor.edit(small, "make it red", task="style", seed=3))
    assert torch.equal(editor.edit(image, "make it red", task="style", seed=3), wanted)
    generator = torch.Generator().manual_seed(3)
    result = pipe("make it red", image, task="style", generator=generator, output_type="pt")
    assert isinstance(result, ImagePipelineOutput)
    made = torch.as_tensor(result.images)[0]
    assert torch.equal((made * 255).round().byte(), wanted)


def test_tiles_leave_no_step_at_their_borders(editor: Editor) -> None:
    image = torch.full((3, 64, 64), 128, dtype=torch.uint8)
    made = editor.edit(image, "make it red", task="local", large=TILES).float()
    whole = editor.edit(image, "make it red", task="local").float()
    assert not torch.equal(made, whole)
    step = (made[..., 1:] - made[..., :-1]).abs().mean((0, 1))
    borders = step[7:56:8]  # of tiles of 16 that overlap by 8
    assert borders.mean() < 1.15 * step[7:56:2].mean()  # of all cells of the codec


def test_tiles_are_as_large_as_the_picture_may_be(editor: Editor) -> None:
    wide = picture(16, 300)
    with pytest.raises(InputError, match="is 300x16, more than 16 times"):
        editor.edit(wide, "make it red", task="local")
    assert editor.edit(wide, "make it red", task="local", large=TILES).shape == wide.shape


@pytest.mark.parametrize("large", [None, TILES, WHOLE])
@pytest.mark.parametrize("chain_latents", [False, True])
def test_turns_on_a_large_picture_keep_pixels_bit_for_bit_and_are_made_again(
    editor: Editor, large: Large | None, *, chain_latents: bool
) -> None:
    image = picture(40, 36)
    start = EditSession.start(editor, image, chain_latents=chain_latents, large=large)
    loose = start.edit("make it red", LOCAL).image
    alpha = mean_difference(image, loose).median().item()
    settings = TurnSettings(task="local", threshold=alpha)
    session = start.edit("make it red", settings).edit("make it blue", settings)
    assert session.turns[0].large == {None: "guided:16", TILES: "tiles:16", WHOLE: "whole"}[large]
    assert torch.equal(session.images[1], keep_unchanged(image, loose, alpha=alpha))
    is_kept = (session.images[1] == image).all(0)
    assert 0.3 < is_kept.float().mean() < 0.7
    assert session.image.shape == image.shape
    again = replay(editor, image, session.manifest())
    pairs = zip(again.images, session.images, strict=True)
    assert all(torch.equal(made, was) for made, was in pairs)


def test_a_manifest_of_before_large_pictures_had_a_way_is_edited_whole(editor: Editor) -> None:
    image = picture(40, 36)
    manifest = EditSession.start(editor, image, large=WHOLE).edit("make it red", LOCAL).manifest()
    turns = manifest["turns"]
    assert isinstance(turns, list)
    assert turns[0].pop("large") == "whole"
    assert replay(editor, image, manifest).manifest()["results"] == manifest["results"]


def test_how_a_large_picture_is_edited_is_said_in_words() -> None:
    assert Large().describe((40, 30)) == ""
    words = "edited as a copy of 16x21, the change put on its 30x40 pixels"
    assert Large(Way.guided, 16).describe((40, 30)) == words
    assert Large(Way.tiles, 16).describe((40, 30)) == "edited in tiles of 16 pixels"
