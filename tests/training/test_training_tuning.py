"""EI²: one video, one tuning; noise of the source leads back to it, another caption elsewhere."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from emu_edit.cli.main import main
from emu_edit.diffusion.prediction import Prediction
from emu_edit.diffusion.samplers import noise_of, sample
from emu_edit.diffusion.schedule import NoiseSchedule
from emu_edit.editing.generate import load_generator
from emu_edit.editing.tuned import Tuned
from emu_edit.errors import InputError
from emu_edit.images import save_png
from emu_edit.models.interfaces import Conditioning
from emu_edit.models.video import VideoDenoiser
from emu_edit.training.tuning import TuneSettings, tune
from emu_edit.video.io import open_video
from tests.training.video_stage import FRAMES, SIZE, make_clip, write_base

CAPTION, OTHER = "a red square moves to the right", "a blue square moves to the right"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untrained model of captions."""
    return write_base(tmp_path_factory.mktemp("base") / "model")


def tuned_on(base: Path, **asked: object) -> Tuned:
    settings = TuneSettings(**{"steps": 3, "lr": 1e-2, "head_dim": 8, **asked})  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(5)
        return tune(str(base), make_clip(0).target, CAPTION, settings)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "stable_diffusion"])
def test_inverted_noise_leads_back(kind: str, base: Path, stable_diffusion: Path) -> None:
    editor = load_generator(base if kind == "ours" else stable_diffusion, "cpu")
    networks, generator = editor.networks, torch.Generator().manual_seed(2)
    z_0 = torch.randn(2, networks.codec.latent_channels, 4, 4, generator=generator)
    text, _ = networks.encode_text(["a house", "a tree"])
    cond = Conditioning(
        text, torch.zeros_like(z_0), networks.task_vectors(["caption"]).expand(2, -1)
    )
    predict = networks.denoiser.told(cond)
    schedule = editor.schedule
    times = [t for t in schedule.times(25, 16) if schedule.level(t).alpha > 0]
    asked = {"schedule": schedule, "prediction": editor.prediction, "times": times}
    errors = []
    for refine in (1, 6):
        noise = noise_of(predict, z_0, refine=refine, **asked)
        errors.append(float((sample(predict, noise, **asked) - z_0).square().mean().sqrt()))
    if editor.prediction is Prediction.eps:  # a last step that adds nothing can be undone exactly
        assert errors[1] < min(0.02, errors[0])
    else:
        assert errors[1] <= errors[0]


def test_a_network_that_knows_the_answer_is_inverted_exactly() -> None:
    schedule, generator = NoiseSchedule.scaled_linear(100), torch.Generator().manual_seed(3)
    z_0 = torch.randn(1, 3, 4, 4, generator=generator)
    asked = {"schedule": schedule, "prediction": Prediction.z0, "times": [80, 50, 20]}
    noise = noise_of(lambda _z, _t: z_0, z_0, **asked)
    assert_close(sample(lambda _z, _t: z_0, noise, **asked), z_0)
    with pytest.raises(InputError, match="nothing of a picture is left"):
        noise_of(lambda _z, _t: z_0, z_0, **{**asked, "times": [99, 50]})


@pytest.mark.parametrize("plain", [False, True])
def test_layers_of_time_and_queries_learn_and_are_kept(
    plain: bool, base: Path, tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for p in base.rglob("*") if p.is_file()}
    tuned = tuned_on(base, plain=plain)
    assert {p: p.read_bytes() for p in base.rglob("*") if p.is_file()} == before
    own = load_generator(base, "cpu").networks.denoiser.state_dict()
    denoiser = tuned.animator.video.networks.denoiser
    assert isinstance(denoiser, VideoDenoiser)
    changed = {n for n, p in denoiser.base.state_dict().items() if not torch.equal(p, own[n])}
    assert changed
    assert all(".to_q." in name for name in changed)
    assert denoiser.adapter.spec.stam != plain
    latents = tuned.animator.video.encode(make_clip(0).target)
    settings = tuned.animator.video.settings
    assert (settings.guidance.text, settings.num_steps) == (12.5, 50)
    found = [tuned.edit(latents, text, settings) for text in (CAPTION, OTHER)]
    assert not torch.allclose(found[0], found[1])
    tuned.save_pretrained(tmp_path / "tuned")
    again = Tuned.from_pretrained(tmp_path / "tuned", "cpu")
    assert again.caption == CAPTION
    assert_close(again.edit(latents, OTHER, settings), found[1], atol=1e-4, rtol=1e-4)


def test_tuning_makes_the_error_small(base: Path) -> None:
    errors = []
    for steps in (1, 60):
        tuned = tuned_on(base, steps=steps)
        video = tuned.animator.video
        z_0 = video.encode(make_clip(0).target).flatten(0, 1)[None]
        generator, networks = torch.Generator().manual_seed(1), video.networks
        with torch.no_grad():
            text, _ = networks.encode_text([CAPTION])
            told = Conditioning(text, torch.zeros_like(z_0), networks.task_vectors(["caption"]))
            output = networks.denoiser(
                torch.randn(z_0.shape, generator=generator), torch.tensor([999]), told
            )
        errors.append(float((output - z_0).square().mean()))
    assert errors[1] < errors[0] - 0.005  # of a network that knows nothing else


def test_the_verbs_tune_and_edit(
    base: Path, workplace: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = workplace / "clip"
    folder.mkdir()
    for number, frame in enumerate(make_clip(0).target):
        save_png(folder / f"{number}.png", frame)
    words = ["tune", "clip", CAPTION, "--model", str(base), "--device", "cpu", "--head-dim", "8"]
    assert main([*words, "--steps", "2", "-o", "tuned"]) == 0
    assert "--model tuned --size 16" in capsys.readouterr().out
    edit = ["video", "clip", OTHER, "--model", "tuned", "--device", "cpu", "--steps", "2"]
    assert main([*edit, "--no-cuts", "--no-threshold", "-o", "out.png"]) == 0
    drawn = [frame.pixels for frame in open_video(workplace / "out.png").frames()]
    assert len(drawn) == FRAMES
    assert drawn[0].shape == (3, SIZE, SIZE)
    assert main([*words, "--steps", "2", "-o", "clip"]) == 2
    assert "is no model directory" in capsys.readouterr().err
