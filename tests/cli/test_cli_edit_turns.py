import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.predictor import TaskPrediction, TaskPredictor
from emu_edit.editing.session import EditSession, TurnSettings
from emu_edit.editing.sheets import draw_sheet
from emu_edit.errors import installed_version
from emu_edit.images import decode_rgb, read_image
from emu_edit.models.tiny import TinyText
from emu_edit.tasks import SIXTEEN

INSTRUCTIONS = ["make it red", "füge einen Hut hinzu", "paint it"]
TASKS = ["local", "add", "style"]


def edit(model: Path, *arguments: str, task: str = "local") -> list[str]:
    return ["edit", *arguments, "--model", str(model), "--task", task]


def three_turns(photo: Path, model: Path, output: str, *more: str) -> list[str]:
    tasks = [argument for task in TASKS for argument in ("--task", task)]
    options = ["--model", str(model), "--seed", "5", "--no-threshold", *tasks, *more]
    return ["edit", str(photo), *INSTRUCTIONS, "-o", output, *options]


def session_of(photo: Path, model: Path) -> EditSession:
    session = EditSession.start(Editor.from_pretrained(model), read_image(photo), seed=5)
    for instruction, task in zip(INSTRUCTIONS, TASKS, strict=True):
        session = session.edit(instruction, TurnSettings(task, threshold=None))
    return session


def texts_of(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        image.load()
        return {str(keyword): text for keyword, text in image.info.items()}


def test_turns_into_a_folder_write_each_turn_the_original_a_sheet_and_a_manifest(
    photo: Path, model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(three_turns(photo, model, "out")) == 0
    assert sorted(path.name for path in (workplace / "out").iterdir()) == [
        "manifest.json",
        "original.png",
        "sheet.png",
        "turn-01.png",
        "turn-02.png",
        "turn-03.png",
    ]
    session = session_of(photo, model)
    assert torch.equal(read_image("out/original.png"), session.original)
    for number, image in enumerate(session.images[1:], start=1):
        assert torch.equal(read_image(f"out/turn-0{number}.png"), image)
    line = "wrote out (20x16, tasks local, add, style, seed 5, model "
    assert capsys.readouterr().out.startswith(line)


@pytest.mark.usefixtures("workplace")
def test_the_sheet_shows_every_picture_enlarged_by_whole_factors(photo: Path, model: Path) -> None:
    assert main(three_turns(photo, model, "out")) == 0
    sheet = read_image("out/sheet.png")
    panels = [read_image("out/original.png")]
    panels += [read_image(f"out/turn-0{number}.png") for number in (1, 2, 3)]
    for number, panel in enumerate(panels):
        large = panel.repeat_interleave(9, dim=1).repeat_interleave(9, dim=2)  # 192 // 20
        left = 10 + number * 202
        assert torch.equal(sheet[:, 10 : 10 + 144, left : left + 180], large)
    below = sheet[:, 10 + 144 :]
    assert (below < 128).any()  # letters


def test_the_sheet_has_letters_of_other_languages_and_breaks_long_texts() -> None:
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)

    def drawn(text: str) -> tuple[tuple[int, int], bytes]:
        sheet = draw_sheet([image], [("", text)])
        return sheet.size, sheet.tobytes()

    letters = ["f", "ü", "ж", "λ", "ø"]
    assert len({drawn(letter)[1] for letter in letters}) == len(letters)  # no box for each of them
    assert drawn("a")[0] == (212, 10 + 192 + 2 * 18 + 20)
    assert drawn("make it red " * 200)[0] == (212, 10 + 192 + 6 * 18 + 20)


@pytest.mark.usefixtures("workplace")
def test_turns_into_a_picture_write_the_last_one_and_more_only_on_request(
    photo: Path, model: Path
) -> None:
    assert main(three_turns(photo, model, "out.png")) == 0
    assert [path.name for path in Path().iterdir()] == ["out.png"]
    assert torch.equal(read_image("out.png"), session_of(photo, model).image)
    assert main(three_turns(photo, model, "out.webp", "--sheet", "--manifest")) == 0
    assert sorted(path.name for path in Path().iterdir()) == [
        "out.manifest.json",
        "out.png",
        "out.sheet.png",
        "out.webp",
    ]
    assert torch.equal(read_image("out.webp"), read_image("out.png"))


@pytest.mark.usefixtures("workplace")
def test_a_png_tells_how_it_was_made_and_nothing_of_the_machine(photo: Path, model: Path) -> None:
    assert main(three_turns(photo, model, "out", "--negative", "a dog", "--guidance-text=2")) == 0
    for number in (1, 2, 3):
        texts = texts_of(Path(f"out/turn-0{number}.png"))
        assert texts["Description"] == "\n".join(INSTRUCTIONS[:number])
        assert texts["Software"] == f"emu-edit {installed_version()}"
        about = json.loads(texts["emu-edit"])
        assert about["seed"] == 5
        assert [turn["task"] for turn in about["turns"]] == TASKS[:number]
        assert about["turns"][0] == {
            "instruction": "make it red",
            "task": "local",
            "seed": 5,
            "negative": "a dog",
            "guidance_text": 2.0,
            "guidance_image": 1.0,
            "num_steps": 1,
            "sampler": "ddim",
            "threshold": None,
            "large": "whole",
        }
    for path in Path("out").iterdir():
        data = path.read_bytes()
        for private in (str(photo), str(model), str(model.parent), str(Path.cwd())):
            assert private.encode() not in data, (path, private)


@pytest.mark.usefixtures("workplace")
def test_a_model_is_named_by_its_run_when_it_lies_in_one(photo: Path, model: Path) -> None:
    shutil.copytree(model, "runs/tiny-1/model")
    assert main(["edit", str(photo), "make it red", "--task", "local", "-o", "out.png"]) == 0
    assert json.loads(texts_of(Path("out.png"))["emu-edit"])["model"] == "tiny-1"


@pytest.mark.usefixtures("workplace")
def test_a_manifest_replays_to_the_same_pixels_from_the_folders_own_original(
    photo: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(three_turns(photo, model, "out", "--size", "12")) == 0
    again = ["edit", "out/original.png", "--replay", "out/manifest.json", "--model", str(model)]
    assert main([*again, "-o", "again"]) == 0
    for name in ("original.png", "turn-01.png", "turn-02.png", "turn-03.png", "manifest.json"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()
    assert capsys.readouterr().err == ""
    # the resized picture is another picture than the file
    assert main(["edit", str(photo), *again[2:], "-o", "x.png"]) == 2
    assert "--size 12 if it was resized" in capsys.readouterr().err
    assert main(["edit", str(photo), *again[2:], "-o", "x.png", "--size", "12"]) == 0
    assert torch.equal(read_image("x.png"), read_image("out/turn-03.png"))


@pytest.mark.usefixtures("workplace")
def test_a_replay_with_other_pixels_than_the_recorded_ones_says_so(
    photo: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(three_turns(photo, model, "out")) == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    manifest["results"][1] = "0" * 64
    Path("other.json").write_text(json.dumps(manifest))
    again = ["edit", str(photo), "--replay", "other.json", "--model", str(model), "-o", "x.png"]
    assert main(again) == 0
    assert capsys.readouterr().err.startswith("turn 2 does not have the pixels of the manifest")


@pytest.mark.usefixtures("workplace")
def test_a_picture_goes_from_standard_input_to_standard_output(
    photo: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert main(edit(model, str(photo), "make it red", "-o", "out.png")) == 0
    capfdbinary.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    assert main(edit(model, "-", "make it red", "-o", "-")) == 0
    printed = capfdbinary.readouterr()
    assert torch.equal(decode_rgb(printed.out), read_image("out.png"))
    assert printed.err.startswith(b"wrote standard output (20x16, task local")
    assert [path.name for path in Path().iterdir()] == ["out.png"]


@pytest.mark.usefixtures("workplace")
def test_json_is_one_object_for_the_picture_and_nothing_else_on_standard_output(
    photo: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(three_turns(photo, model, "out", "--json")) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    told = json.loads(printed.out)
    assert told["picture"] == str(photo)
    assert (told["width"], told["height"], told["seed"]) == (20, 16, 5)
    assert [turn["output"] for turn in told["turns"]] == [f"out/turn-0{n}.png" for n in (1, 2, 3)]
    assert [turn["instruction"] for turn in told["turns"]] == INSTRUCTIONS
    assert (told["sheet"], told["manifest"]) == ("out/sheet.png", "out/manifest.json")


def ranking_of(confidence: float) -> tuple[tuple[str, float], ...]:
    rest = (1 - confidence) / 2
    return (("add", confidence), ("local", rest), ("texture", rest), ("text", 0.0))


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("confidence", "line"),
    [
        (0.97, "turn 1: task add (97%)\n"),
        (0.6, "turn 1: task add (60%), local (20%), texture (20%) - unsure; if it is another "),
    ],
)
def test_the_predictor_decides_when_no_task_is_named_and_is_quoted(
    photo: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    confidence: float,
    line: str,
) -> None:
    def predict_tasks(_: Editor, texts: list[str]) -> list[TaskPrediction]:
        return [TaskPrediction("add", confidence, ranking_of(confidence)) for _ in texts]

    monkeypatch.setattr(Editor, "predict_tasks", predict_tasks)
    monkeypatch.setattr("emu_edit.cli.edit.has_predictor", lambda _: True)
    arguments = ["edit", str(photo), "add a hat", "--model", str(model), "-o", "out.png"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    (turn,) = json.loads(printed.out)["turns"]
    assert (turn["task"], turn["confidence"]) == ("add", confidence)
    assert turn["ranking"] == [list(pair) for pair in ranking_of(confidence)[:3]]


def test_a_model_directory_with_a_predictor_needs_no_task(
    photo: Path, model: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = workplace / "own"
    shutil.copytree(model, own)
    predictor = TaskPredictor(TinyText(dim=16, num_layers=1, num_heads=2), SIXTEEN)
    with torch.no_grad():
        predictor.head.bias[SIXTEEN.index("texture")] = 9.0
    predictor.eval().save_pretrained(own / "predictor")
    arguments = ["edit", str(photo), "make it wooden", "paint it", "--model", "own", "-o", "out"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "turn 1: task texture (100%)\nturn 2: task texture (100%)\n"
    assert "tasks texture, texture, seed 0, model own" in printed.out


@pytest.mark.usefixtures("workplace")
def test_two_tasks_can_be_mixed_and_the_threshold_chosen(photo: Path, model: Path) -> None:
    pixels = {}
    for task in ("style", "global", "style+global:0.3", "style+global:0"):
        assert main(edit(model, str(photo), "make it night", "-o", "out.png", task=task)) == 0
        pixels[task] = read_image("out.png")
        about = json.loads(texts_of(Path("out.png"))["emu-edit"])
        assert about["turns"][0]["task"] == task
    assert torch.equal(pixels["style+global:0"], pixels["style"])
    arguments = edit(model, str(photo), "make it night", "-o", "out.png", "--threshold", "3.1")
    assert main(arguments) == 0
    assert torch.equal(read_image("out.png"), read_image(photo))  # nothing changes by more


@pytest.mark.usefixtures("workplace")
def test_a_file_that_exists_is_replaced_and_a_folder_is_reused(photo: Path, model: Path) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    np.save("out/turn-01.npy", np.zeros(1))
    for seed in ("5", "6"):
        assert main([*three_turns(photo, model, "out"), "--seed", seed]) == 0
        about = json.loads(texts_of(Path("out/turn-03.png"))["emu-edit"])
        assert about["seed"] == int(seed)
    assert Path("out/notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("workplace")
def test_options_may_stand_between_the_turns(photo: Path, model: Path) -> None:
    between = ["edit", "-o", "out.png", str(photo), "make it red", "--task", "local", "paint it"]
    assert main([*between, "--model", str(model), "make it blue"]) == 0
    about = json.loads(texts_of(Path("out.png"))["emu-edit"])
    assert [t["instruction"] for t in about["turns"]] == ["make it red", "paint it", "make it blue"]
