"""UCF-101: lists and prompts, samples by class, and drawn videos against real ones as sets."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from datamodules.evaluation_sets.ucf101 import Ucf101, UcfClass, load_ucf101, words_of
from emu_edit.cli.main import main
from emu_edit.diffusion.prediction import Prediction
from emu_edit.errors import InputError
from emu_edit.evaluation.ucf101 import UcfOptions, features_of, load_networks
from emu_edit.metrics.frechet import Moments, frechet_distance
from emu_edit.tasks import CAPTION
from emu_edit.training.export import export_model
from emu_edit.video.write import write_clip
from tests.evaluation.test_evaluation_options import MODEL
from tests.metrics.tiny_i3d import CLASSES, write_i3d
from tests.metrics.tiny_videomae import WIDTH, write_videomae
from tests.training.stage import make_module
from tests.training.test_training_video import module, moved

FRAMES = 9
PLACES = (
    *(f"YoYo/v_YoYo_g08_c{number:02d}.avi" for number in range(1, 5)),
    *(f"HandstandWalking/v_HandStandWalking_g01_c{number:02d}.avi" for number in range(1, 3)),
)


def write_video(path: Path, seed: int, frames: int = FRAMES + 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 4, 4, generator=generator)
    clip = torch.nn.functional.interpolate(coarse * 255, (24, 32)).byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, clip, Fraction(25))


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes as they are unpacked, with lists that name a video of the test split, too."""
    folder = tmp_path_factory.mktemp("ucf")
    for number, place in enumerate((*PLACES, "YoYo/v_YoYo_g01_c01.avi")):
        write_video(folder / "UCF-101" / place, number)
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 HandstandWalking\r\n2 YoYo\r\n")
    lines = [f"{place} {1 if place.startswith('H') else 2}\r\n" for place in PLACES]
    (lists / "trainlist01.txt").write_text("".join(lines))
    (lists / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\r\n")
    return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    write_i3d(folder / "i3d")
    write_videomae(folder / "videomae")
    return folder


def test_the_training_list_says_which_videos_and_the_name_what_is_asked_for(ucf: Path):
    found = load_ucf101(ucf)
    assert [(one.name, one.prompt) for one in found.classes] == [
        ("HandstandWalking", "handstand walking"),
        ("YoYo", "yo yo"),
    ]
    assert [path.name for path in found.videos] == [
        *("v_HandStandWalking_g01_c01.avi", "v_HandStandWalking_g01_c02.avi"),
        *(f"v_YoYo_g08_c{number:02d}.avi" for number in range(1, 5)),
    ]
    assert words_of("ApplyEyeMakeup") == "apply eye makeup"


def test_sentences_of_ones_own_take_the_place_of_names(ucf: Path, tmp_path: Path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"YoYo": "A person plays with a yo-yo."}))
    with pytest.raises(InputError, match="says nothing of HandstandWalking; add a sentence"):
        load_ucf101(ucf, file)
    file.write_text(json.dumps({"YoYo": "A yo-yo.", "HandstandWalking": "On hands."}))
    named = load_ucf101(ucf, file)
    assert [one.prompt for one in named.classes] == ["On hands.", "A yo-yo."]
    assert named.sha256 != load_ucf101(ucf).sha256
    file.write_text("[1]")
    with pytest.raises(InputError, match="needs an object of a sentence by class"):
        load_ucf101(ucf, file)


def test_samples_are_parted_as_the_real_videos_are():
    def classes(*sizes: int) -> Ucf101:
        paths = tuple(Path(f"{number}.avi") for number in range(max(sizes)))
        return Ucf101("", tuple(UcfClass(str(n), "", paths[:n]) for n in sizes))

    assert classes(2, 4).counts(6) == (2, 4)
    assert classes(2, 4).counts(10_000) == (3333, 6667)
    assert classes(1, 1, 1).counts(2) == (1, 1, 0)
    sizes = tuple(70 + 7 * (n % 13) for n in range(101))
    counts = classes(*sizes).counts(10_000)
    assert sum(counts) == 10_000
    assert all(abs(n - 10_000 * s / sum(sizes)) < 1 for n, s in zip(counts, sizes, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classInd.txt", "1 Yo Yo\n", "classInd.txt:1: '1 Yo Yo' is not two names"),
        ("classInd.txt", "1 YoYo\n", "trainlist01.txt:5: 'HandstandWalking/v_HandStand"),
        ("trainlist01.txt", "YoYo/../x.avi 1\n", "is not two names"),
        ("trainlist01.txt", "YoYo/v_YoYo_g09_c01.avi 2\n", "1 of 1 videos of .* are missing"),
        ("trainlist01.txt", None, "has no ucfTrainTestlist/trainlist01.txt; unpack"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    ucf: Path, tmp_path: Path, name: str, text: str | None, words: str
):
    (tmp_path / "UCF-101").symlink_to(ucf / "UCF-101")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    for path in (ucf / "ucfTrainTestlist").iterdir():
        (lists / path.name).write_bytes(path.read_bytes())
    (lists / name).unlink() if text is None else (lists / name).write_text(text)
    with pytest.raises(InputError, match=words):
        load_ucf101(tmp_path)


def test_folders_that_are_needed_are_asked_for(ucf: Path, backbones: Path, tmp_path: Path):
    with pytest.raises(InputError, match="needs --data DIR, the folder with UCF-101's classes"):
        UcfOptions(MODEL, None, backbones)
    with pytest.raises(InputError, match=r"needs --backbones DIR, the folder with i3d/ \(FVD\)"):
        UcfOptions(MODEL, ucf, None)
    with pytest.raises(InputError, match=r"has neither i3d/ nor videomae/; put rgb_imagenet\.pt"):
        load_networks(tmp_path, "cpu")


def test_videos_of_others_are_compared_whatever_their_names(
    ucf: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = tmp_path / "made"
    for number in range(3):
        write_video(made / f"video {number}.mp4", 50 + number)
    command = ["evaluate", str(made), "--benchmark", "ucf101", "--data", str(ucf)]
    command += ["--backbones", str(backbones), "--frames", str(FRAMES)]
    assert main([*command, "--compare", "published"]) == 0
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "made-ucf101" / "results.json").read_text())
    network = load_networks(backbones, "cpu")["videomae"]
    true, drawn = (
        Moments.of(features_of(network, paths, FRAMES, "some"))
        for paths in (load_ucf101(ucf).videos, sorted(made.iterdir()))
    )
    row = results["distances"][1]
    assert row["distance"] == pytest.approx(frechet_distance(true, drawn), rel=1e-6)
    assert row["sha256"] == network.sha256
    assert [one["width"] for one in results["distances"]] == [CLASSES, WIDTH]
    assert (results["data"]["items"], results["data"]["true"]) == (3, 6)
    for words in (
        "| I3D (Kinetics-400) |",
        "3 clips for features of width 16",
        "IS is not computed",
        "papers draw 10000 videos",
        "| Make-A-Video",
        "not comparable",
    ):
        assert words in told
    assert main([*command[:-1], "12", "-o", str(tmp_path / "other")]) == 2
    assert "has 11 frames, 12 are compared" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_draws_each_class_as_often_as_it_comes(
    ucf: Path, backbones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = tmp_path / "base"
    make_module(prediction=Prediction.z0, tasks=[CAPTION]).make_editor().save_pretrained(base)
    export_model(moved(module(base)), tmp_path / "mine", ema=None)
    command = ["evaluate", str(tmp_path / "mine"), "--benchmark", "ucf101", "--data", str(ucf)]
    command += ["--backbones", str(backbones), "--frames", str(FRAMES), "--steps", "1"]
    assert main([*command, "--limit", "3"]) == 0
    out = tmp_path / "mine-ucf101"
    drawn = sorted(path.name for path in (out / "videos").iterdir())
    assert drawn == ["HandstandWalking_00001.png", "YoYo_00001.png", "YoYo_00002.png"]
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    before = json.loads((out / "results.json").read_text())
    lost = out / "videos" / drawn[1]
    pixels = lost.read_bytes()
    lost.unlink()
    assert main([*command, "--limit", "3"]) == 0  # draws the one again, the same
    assert lost.read_bytes() == pixels
    assert json.loads((out / "results.json").read_text())["distances"] == before["distances"]
    capsys.readouterr()
    assert main([*command, "--limit", "4"]) == 2
    assert "was begun with samples 3, now it is 4" in capsys.readouterr().err
    assert main(["evaluate", str(base), *command[2:], "--limit", "3"]) == 2
    assert "draws pictures and no videos" in capsys.readouterr().err
