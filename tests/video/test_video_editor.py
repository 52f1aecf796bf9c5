"""The picture editor on frames: what ties them together, and what must change nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import UInt8
from torch import Tensor, nn

from emu_edit.editing.editor import Editor
from emu_edit.errors import InputError
from emu_edit.models.frame_attention import FrameAttention, Look, level_size, looking
from emu_edit.video.editor import VideoEditor, VideoSettings, VideoTurn
from emu_edit.video.noise import NoiseMode
from emu_edit.video.windows import Shot

TURN = VideoTurn("make it red", "local", seed=3)
LENGTH = 6
LOOKS = list(Look)
TIED = [look for look in Look if look is not Look.own]


@pytest.fixture(scope="module")
def editor(model: Path) -> Editor:
    """The tiny model, with weights that let attention speak."""
    editor = Editor.from_pretrained(model, device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in editor.networks.denoiser.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(0.2 * noise)
    return editor


def shots(length: int = LENGTH, starts: tuple[int, ...] = (0, 4)) -> list[Shot]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (length, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return [Shot(pixels[number], number, number in starts) for number in range(length)]


def edited(
    editor: Editor, given: list[Shot], settings: VideoSettings, *turns: VideoTurn
) -> UInt8[Tensor, "f 3 h w"]:
    done = list(VideoEditor(editor, turns or [TURN], settings).edit(given))
    assert [(shot.number, shot.starts) for shot in done] == [
        (shot.number, shot.starts) for shot in given
    ]
    return torch.stack([shot.pixels for shot in done])


@pytest.fixture(scope="module")
def alone(editor: Editor) -> UInt8[Tensor, "f 3 h w"]:
    """What every frame gives for itself."""
    return edited(editor, shots(), VideoSettings())


@pytest.mark.parametrize("look", LOOKS)
def test_every_frame_comes_out_once_and_in_order(editor: Editor, look: Look) -> None:
    for length in (1, 4):
        settings = VideoSettings(look=look, window=3, overlap=1)
        assert len(edited(editor, shots(length, (0,)), settings)) == length


@pytest.mark.parametrize("look", TIED)
def test_a_look_at_other_frames_changes_what_a_frame_gives(
    editor: Editor, alone: Tensor, look: Look
) -> None:
    tied = edited(editor, shots(), VideoSettings(look=look, window=4))
    # the second frame of a scene sees the first
    assert (tied[1].int() - alone[1].int()).abs().max() > 1


@pytest.mark.parametrize("look", TIED)
def test_a_frame_that_is_alone_in_its_scene_gives_what_the_picture_editor_gives(
    editor: Editor, alone: Tensor, look: Look
) -> None:
    given = shots()[3:5]
    given = [replace(shot, starts=True) for shot in given]
    tied = edited(editor, given, VideoSettings(look=look, window=4))
    assert (tied.int() - alone[3:5].int()).abs().max() <= 1


def test_a_look_sees_nothing_of_the_scene_before(editor: Editor) -> None:
    for look in (Look.both, Look.coarse):
        settings = VideoSettings(look=look, window=3, overlap=1, hold_colour=True)
        later = edited(editor, shots(), settings)[4:]
        changed = [
            Shot(255 - shot.pixels, shot.number, shot.starts) if shot.number < 4 else shot
            for shot in shots()
        ]
        assert torch.equal(edited(editor, changed, settings)[4:], later)


@pytest.mark.parametrize("noise", [NoiseMode.shared, NoiseMode.progressive])
def test_window_and_overlap_change_nothing_where_every_frame_is_alone(
    editor: Editor, noise: NoiseMode
) -> None:
    usual = edited(editor, shots(), VideoSettings(noise=noise))
    for window, overlap in ((1, 0), (16, 5)):
        settings = VideoSettings(noise=noise, window=window, overlap=overlap)
        assert torch.equal(edited(editor, shots(), settings), usual)


def test_a_frame_gives_the_same_wherever_the_video_is_begun(editor: Editor, alone: Tensor) -> None:
    for first in (1, 5):
        rest = shots()[first:]
        rest[0] = replace(rest[0], starts=True)
        assert torch.equal(edited(editor, rest, VideoSettings()), alone[first:])


@pytest.mark.parametrize("look", LOOKS)
def test_stopping_at_any_frame_and_going_on_changes_no_bit(editor: Editor, look: Look) -> None:
    settings = VideoSettings(
        NoiseMode.mixed, look=look, window=3, overlap=1, threshold=0.3, hold_colour=True
    )
    given, turns = shots(5, (0, 4)), [TURN]
    usual = edited(editor, given, settings, *turns)
    video = VideoEditor(editor, turns, settings)
    done: list[Shot] = []
    for shot in given:
        done += video.push(shot)
        state, video = video.state(), VideoEditor(editor, turns, settings)
        video.restore(state)
    done += video.flush()
    assert [(shot.number, shot.starts) for shot in done] == [
        (shot.number, shot.starts) for shot in given
    ]
    assert torch.equal(torch.stack([shot.pixels for shot in done]), usual)


def test_several_instructions_in_one_pass_are_passes_one_after_another(editor: Editor) -> None:
    second = VideoTurn("add a hat", "add", seed=4)
    settings = VideoSettings(look=Look.both, window=3, overlap=1)
    given = shots()
    once = edited(editor, given, settings, TURN)
    between = [
        Shot(pixels, shot.number, shot.starts) for pixels, shot in zip(once, given, strict=True)
    ]
    twice = edited(editor, between, settings, second)
    video = VideoEditor(editor, [TURN, second], settings)
    done: list[Shot] = []
    for shot in given:  # a state of several stages, taken in the middle, too
        done += video.push(shot)
        if shot.number == 3:
            state, video = video.state(), VideoEditor(editor, [TURN, second], settings)
            video.restore(state)
    done += video.flush()
    assert torch.equal(torch.stack([shot.pixels for shot in done]), twice)


@pytest.mark.parametrize("look", [Look.own, Look.coarse])
def test_a_threshold_above_every_difference_gives_the_source_bit_for_bit(
    editor: Editor, look: Look
) -> None:
    settings = VideoSettings(look=look, window=4, overlap=1, threshold=3.1)
    assert torch.equal(
        edited(editor, shots(), settings), torch.stack([shot.pixels for shot in shots()])
    )


def test_a_threshold_of_nothing_and_no_threshold_are_the_same(
    editor: Editor, alone: Tensor
) -> None:
    assert torch.equal(edited(editor, shots(), VideoSettings(threshold=0.0)), alone)


def test_a_threshold_takes_every_pixel_from_source_or_result(editor: Editor, alone: Tensor) -> None:
    kept = edited(editor, shots(), VideoSettings(threshold=0.8))
    source = torch.stack([shot.pixels for shot in shots()])
    is_source = (kept == source).all(dim=1)
    assert ((kept == alone).all(dim=1) | is_source).all()
    assert 0 < is_source.float().mean() < 1
    # memory only ever keeps more of the edit
    forgetful = edited(editor, shots(), VideoSettings(threshold=0.8, memory=0.0))
    assert ((kept == alone) | (forgetful == source)).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 0}, "a window needs at least 1 frame"),
        ({"window": 4, "overlap": 4}, "overlap by 0 to 3 of them, got 4"),
        ({"memory": 1.5}, "memory must be from 0 to 1, got 1.5"),
        ({"noise_alpha": -1.0}, "noise alpha must be at least 0, got -1"),
        ({"noise_alpha": float("nan")}, "noise alpha must be at least 0, got nan"),
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"threshold": -1.0}, "-1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        VideoSettings(**settings)


def test_no_instruction_and_no_task_are_refused(editor: Editor) -> None:
    with pytest.raises(InputError, match="at least one instruction"):
        VideoEditor(editor, [])
    with pytest.raises(InputError, match="task"):
        VideoEditor(editor, [VideoTurn("make it red")])  # the model has no predictor
    with pytest.raises(InputError, match="a seed must be at least 0"):
        VideoEditor(editor, [replace(TURN, seed=-1)])


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=4,
            cross_attention_dim=8,
        ).eval()


def self_attentions(network: nn.Module) -> list[Attention]:
    blocks = (each for each in network.modules() if isinstance(each, BasicTransformerBlock))
    return [block.attn1 for block in blocks]


def run_unet(unet: UNet2DConditionModel, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(rows, 4, 7, 10, generator=generator)
    words = torch.randn(rows, 3, 8, generator=generator)
    with torch.no_grad():
        return unet(latents, 10, encoder_hidden_states=words).sample


@pytest.mark.parametrize("look", LOOKS)
def test_one_frame_alone_attends_as_diffusers_does(unet: UNet2DConditionModel, look: Look) -> None:
    usual = run_unet(unet)
    with looking(unet, FrameAttention(look, 1, (7, 10))):
        assert torch.allclose(run_unet(unet), usual, atol=1e-5)


@pytest.mark.parametrize("look", TIED)
def test_several_frames_do_not(unet: UNet2DConditionModel, look: Look) -> None:
    usual = run_unet(unet)
    with looking(unet, FrameAttention(look, 3, (7, 10))):
        assert not torch.allclose(run_unet(unet), usual, atol=1e-3)


@pytest.fixture
def attention() -> Attention:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        layer = Attention(query_dim=16, heads=2, dim_head=8)
    return layer.double().eval()


def explicit(attention: Attention, own: Tensor, seen: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of one frame's tokens "n c" over those it sees, head by head."""
    assert attention.to_k is not None
    assert attention.to_v is not None
    assert attention.to_out is not None
    queries, keys, values = (
        each(tokens).unflatten(1, (2, 8)).transpose(0, 1)
        for each, tokens in (
            (attention.to_q, own), (attention.to_k, seen), (attention.to_v, seen)
        )
    )  # fmt: skip
    weights = torch.softmax(queries @ keys.transpose(1, 2) / 8**0.5, dim=-1)
    return attention.to_out[0]((weights @ values).transpose(0, 1).flatten(1))


def tokens(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(rows, 12, 16, dtype=torch.float64, generator=generator)


def test_coarse_attention_of_single_cells_is_a_softmax_over_both_frames(
    attention: Attention,
) -> None:
    x = tokens(4)  # two branches of two frames
    result = FrameAttention(Look.coarse, 2, (3, 4), pool=1)(attention, x)
    for row, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        expected = explicit(attention, x[row], torch.cat([x[row], x[other]]))
        assert torch.allclose(result[row], expected, atol=1e-12)


def test_coarse_attention_sees_the_mean_of_each_patch_and_of_what_is_left_at_the_edge(
    attention: Attention,
) -> None:
    x = tokens(2)
    result = FrameAttention(Look.coarse, 2, (3, 4), pool=2)(attention, x)
    grid = x[1].view(3, 4, 16)
    means = [
        grid[top : top + 2, left : left + 2].flatten(0, 1).mean(0)
        for top in (0, 2)
        for left in (0, 2)
    ]
    expected = explicit(attention, x[0], torch.cat([x[0], torch.stack(means)]))
    assert torch.allclose(result[0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("look", "seen"),
    [
        (Look.anchor, {1: [0], 2: [0], 4: [3], 5: [3]}),
        (Look.previous, {1: [0], 2: [1], 4: [3], 5: [4]}),
        (Look.both, {1: [0, 0], 2: [0, 1], 4: [3, 3], 5: [3, 4]}),
    ],
)
def test_a_frame_sees_itself_and_those_of_its_branch_that_its_look_names(
    attention: Attention, look: Look, seen: dict[int, list[int]]
) -> None:
    x = tokens(6)  # two branches of three frames
    result = FrameAttention(look, 3, (3, 4))(attention, x)
    for row, others in seen.items():
        expected = explicit(attention, x[row], torch.cat([x[row], *(x[each] for each in others)]))
        assert torch.allclose(result[row], expected, atol=1e-12)


def test_levels_halve_and_round_up() -> None:
    sizes = [level_size((7, 10), count) for count in (70, 20, 6, 2, 1)]
    assert sizes == [(7, 10), (4, 5), (2, 3), (1, 2), (1, 1)]
    with pytest.raises(InputError, match="a level of 30 cells, which latents of 7x10 do not give"):
        level_size((7, 10), 30)


@pytest.mark.parametrize("look", LOOKS)
def test_processors_are_what_they_were_after_an_error(
    unet: UNet2DConditionModel, look: Look
) -> None:
    before = [layer.processor for layer in self_attentions(unet)]
    assert before

    def stopped() -> None:
        with looking(unet, FrameAttention(look, 2, (7, 10))):
            now = [layer.processor for layer in self_attentions(unet)]
            assert (now == before) == (look is Look.own)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [layer.processor for layer in self_attentions(unet)] == before


def test_a_failed_edit_leaves_the_editor_as_it_was(editor: Editor, alone: Tensor) -> None:
    def broken() -> Iterator[Shot]:
        yield from shots()[:3]
        yield Shot(torch.zeros(3, 24, 16, dtype=torch.uint8), 3, starts=False)

    # frames of two sizes cannot be one window
    with pytest.raises(RuntimeError):
        list(VideoEditor(editor, [TURN], VideoSettings(look=Look.both, window=4)).edit(broken()))
    assert torch.equal(edited(editor, shots(), VideoSettings()), alone)


def test_a_model_without_such_attention_is_refused() -> None:
    attention = FrameAttention(Look.both, 2, (4, 4))
    with (
        pytest.raises(InputError, match="no self-attention that could look at other frames"),
        looking(nn.Linear(2, 2), attention),
    ):
        pass
