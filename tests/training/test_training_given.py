"""Trainings with other given frames than the first: where they are, their noise, what is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from callbacks.ema import Ema
from emu_edit.diffusion.prediction import add_noise
from emu_edit.editing.animate import load_animator
from emu_edit.editing.generate import load_generator
from emu_edit.errors import InputError
from emu_edit.images import to_float
from emu_edit.models.conditioning import DropoutRates
from emu_edit.models.given import Given, GivenFrames
from emu_edit.models.temporal import TemporalSpec
from emu_edit.training.draws import DrawnBatch, DrawnClips, Phase
from emu_edit.training.export import export_model, start_from
from emu_edit.training.video_module import VideoModule
from tests.training.stage import TRAINER_WARNINGS, make_trainer
from tests.training.test_training_video import StopAfterAnEpoch
from tests.training.video_stage import Clips, make_clips, module, write_base

pytestmark = [pytest.mark.filterwarnings(line) for line in TRAINER_WARNINGS]
PAST = GivenFrames(Given.past)
NOISY = GivenFrames(Given.past, train_noise=250, noise=100)
BETWEEN = GivenFrames(Given.interleaved, factor=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    return write_base(tmp_path_factory.mktemp("base") / "model")


def test_given_frames_are_where_the_paper_has_them() -> None:
    between = GivenFrames(Given.interleaved)
    assert between.count(8) == 37  # 4 at each end, 3 between neighbours
    assert list(between.places(37)) == [4, 8, 12, 16, 20, 24, 28, 32]
    assert list(BETWEEN.places(BETWEEN.count(3))) == [2, 4, 6]
    assert list(PAST.places(32)) == list(range(16))
    assert list(PAST.places(5)) == [0, 1]
    assert list(GivenFrames().places(8)) == [0]


@pytest.mark.parametrize(
    ("given", "frames", "places"),
    [(GivenFrames(), 3, [0]), (PAST, 5, [0, 1]), (BETWEEN, 7, [2, 4])],
)
@torch.no_grad()
def test_the_model_is_told_the_given_frames_and_zeros(
    given: GivenFrames, frames: int, places: list[int], base: Path
) -> None:
    ours, clips = module(base, given=given, frames=frames), make_clips(range(2), frames)
    drawn = ours.drawn(clips, Phase.train)
    assert not isinstance(drawn, DrawnClips)
    _, cond, _ = ours.encoder(drawn)
    told = cond.z_source.unflatten(1, (frames, -1))
    mean, _ = ours.networks.codec.posterior(to_float(clips.target.flatten(0, 1)))
    mean = mean.unflatten(0, (2, frames))
    for f in range(frames):
        assert torch.equal(told[:, f], mean[:, f] if f in places else torch.zeros_like(mean[:, f]))


@torch.no_grad()
def test_noise_of_given_frames_is_of_the_schedule_from_step_0_to_the_most(base: Path) -> None:
    clean, noisy = module(base, given=PAST), module(base, given=NOISY)
    drawn = noisy.drawn(make_clips(range(2)), Phase.train)
    assert isinstance(drawn, DrawnClips)
    (_, before, _), (_, after, _) = clean.encoder(drawn_without(drawn)), noisy.encoder(drawn)
    told = slice(0, drawn.eps_given.shape[1])
    for u, t in ((0.0, 0), (0.5, 125), (0.999999, 250)):
        at = replace(drawn, u_given=torch.full((2,), u))
        _, cond, _ = noisy.encoder(at)
        level = noisy.schedule.at(torch.tensor([t, t]))
        expected = add_noise(before.z_source[:, told], drawn.eps_given, level)
        assert_close(cond.z_source[:, told], expected)
        assert not cond.z_source[:, told.stop :].any()  # nothing but what is given
    assert not torch.equal(after.z_source, before.z_source)


def drawn_without(drawn: DrawnClips) -> DrawnBatch:
    return DrawnBatch(drawn.batch, drawn.u, drawn.eps, drawn.eps_posterior)


def test_noise_of_given_frames_depends_on_the_clips_place_alone(base: Path) -> None:
    noisy = module(base, given=NOISY)
    pair, one = (noisy.drawn(make_clips(r), Phase.train) for r in (range(3, 5), range(4, 5)))
    assert isinstance(pair, DrawnClips)
    assert isinstance(one, DrawnClips)
    assert torch.equal(pair.u_given[1:], one.u_given)
    assert torch.equal(pair.eps_given[1:], one.eps_given)
    assert not torch.equal(pair.eps_given[:1], one.eps_given)
    validated = noisy.drawn(make_clips(range(4, 5)), Phase.validate)
    assert isinstance(validated, DrawnClips)
    assert not torch.equal(validated.eps_given, one.eps_given)
    # and all other numbers are those of a training without it
    plain = module(base, given=PAST).drawn(make_clips(range(4, 5)), Phase.train)
    for name in ("u", "eps", "eps_posterior"):
        assert torch.equal(getattr(plain, name), getattr(one, name))


def test_a_withheld_condition_is_zeros_and_no_noise(base: Path) -> None:
    noisy, told = module(base, given=NOISY), []
    noisy.networks.denoiser.register_forward_pre_hook(
        lambda _module, _inputs, named: told.append(named["cond"].z_source), with_kwargs=True
    )
    drawn = noisy.drawn(make_clips(range(2)), Phase.train)
    noisy.step(drawn, dropout=DropoutRates(text=0.0, image=1.0, both=0.0, task=0.0))
    noisy.step(drawn, dropout=DropoutRates(0.0, 0.0, 0.0, 0.0))
    assert not told[0].any()
    assert told[1].flatten(1).any(1).all()


def test_a_training_with_noisy_frames_that_was_stopped_ends_as_one_that_was_not(
    base: Path, tmp_path: Path
) -> None:
    whole, first, second = (module(base, given=NOISY) for _ in range(3))
    averages = [Ema(0.5) for _ in range(3)]
    make_trainer(tmp_path, averages[0], max_epochs=2).fit(whole, Clips())
    stopped = make_trainer(tmp_path, averages[1], StopAfterAnEpoch(), max_epochs=2)
    stopped.fit(first, Clips())
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    going_on = make_trainer(tmp_path, averages[2], max_epochs=2)
    going_on.fit(second, Clips(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert going_on.global_step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    assert averages[0].average is not None
    assert averages[2].average is not None
    for name, value in averages[0].average.items():
        assert torch.equal(averages[2].average[name], value), name


def test_a_checkpoint_of_other_given_frames_is_refused(base: Path) -> None:
    state: dict = {"state_dict": {}}
    module(base).on_save_checkpoint(state)
    with pytest.raises(InputError, match=r"trained with model\.given .*'first'.*--start_from"):
        module(base, given=PAST).on_load_checkpoint(state)


def test_a_training_begins_with_the_layers_of_one_of_other_given_frames(
    base: Path, tmp_path: Path
) -> None:
    trainer, first = make_trainer(tmp_path, max_epochs=1), module(base)
    trainer.fit(first, Clips())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    checkpoint = torch.load(tmp_path / "first.ckpt", weights_only=True)
    # what a config leaves to the picture model is None in it
    checkpoint["hyper_parameters"] = {"prediction": None, "zero_terminal_snr": None}
    torch.save(checkpoint, tmp_path / "first.ckpt")
    going_on = module(base, given=PAST)
    with torch.no_grad():
        start_from(going_on, tmp_path / "first.ckpt")
    for name, value in first.state_dict().items():
        assert torch.equal(going_on.state_dict()[name], value), name
    assert going_on.contradiction is None


def test_a_model_directory_says_which_frames_its_layers_are_told(
    base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export_model(module(base, given=NOISY), folder, ema=None)
    record = folder / "temporal" / "video.json"
    values = json.loads(record.read_text())
    assert values["version"] == 2
    assert values["given"] == {"kind": "past", "factor": 4, "train_noise": 250, "noise": 100}
    drawer = load_generator(folder)
    assert load_animator(drawer, folder).given == NOISY
    for entry, words in (
        ({"version": 1}, "video.json has version '1', this program reads 2; export the model aga"),
        ({"given": None}, "given needs exactly kind, factor, train_noise, noise, got None"),
        ({"given": {**values["given"], "kind": "pst"}}, "'pst' is none of .* Did you mean 'past'"),
        ({"given": {**values["given"], "noise": 0.5}}, "given.noise must be whole numbers"),
        ({"given": {**values["given"], "noise": 251}}, "given.noise=251 must be 0 to given.train"),
        ({"frames": 1}, r"video\.json: frames=1: given\.kind past needs clips of at least 2"),
    ):
        record.write_text(json.dumps({**values, **entry}))
        with pytest.raises(InputError, match=words):
            load_animator(drawer, folder)


def test_given_frames_that_cannot_be_are_refused(base: Path) -> None:
    with pytest.raises(InputError, match=r"frames=8: given\.kind interleaved .* needs 13, 17, "):
        module(base, given=GivenFrames(Given.interleaved), frames=8)
    with pytest.raises(InputError, match=r"frames=5: .* factor 2 needs 7, 9, \.\.\. 2 \(n \+ 1\)"):
        module(base, given=BETWEEN, frames=5)
    with pytest.raises(InputError, match=r"frames=1: given\.kind past needs clips of at least 2"):
        module(base, given=PAST, frames=1)
    with pytest.raises(InputError, match=r"given\.train_noise=1000 must be below 1000, the steps"):
        module(base, given=GivenFrames(Given.past, train_noise=1000))
    with pytest.raises(InputError, match=r"given\.factor is 1, needs 2 to 64"):
        GivenFrames(Given.interleaved, factor=1)
    direct = TemporalSpec(head_dim=8, picture_condition=False)
    with pytest.raises(InputError, match=r"kind=past and temporal\.picture_condition=false excl"):
        VideoModule(str(base), direct, given=PAST)
