"""`emu-edit tasks …` and `edit --task` with learned tasks, through the program's own entrance."""

import asyncio
import gc
import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.world import predictor_texts as instructions
from emu_edit.cli.main import main
from emu_edit.editing.editor import Editor
from emu_edit.editing.find import RELEASED
from emu_edit.editing.predictor import TaskPredictor
from emu_edit.errors import ExitStatus
from emu_edit.images import read_image
from emu_edit.models.fingerprints import model_hash
from emu_edit.models.learned_task import LearnedTask
from emu_edit.models.task_files import LEARNED, read_task_table
from emu_edit.models.tiny import TinyText
from emu_edit.models.weights import load_networks
from emu_edit.tasks import SIXTEEN
from emu_edit.training import predictor_row

STRANGER = "0" * 64
PHRASES = ["zxq vwk", "vwk zxq qqq", "zxq qqq"]


@pytest.fixture(scope="session")
def base(model: Path) -> str:
    return model_hash(load_networks(model)[0])


@pytest.fixture
def own(model: Path, workplace: Path) -> Path:
    """A model directory that a test may change, beside the file of a task learnt with it."""
    shutil.copytree(model, workplace / "own")
    return Path("own")


@pytest.fixture
def file(base: str, workplace: Path) -> Path:
    return write_task(workplace / "contour.safetensors", base)


def write_task(path: Path, base: str, **entries: Any) -> Path:
    task = LearnedTask(
        name="contour",
        description="draw the outlines",
        vector=torch.linspace(-2, 2, 8),
        base=base,
        pairs=10,
        steps=300,
        seed=3,
        created="2026-11-20",
        instruction="draw the contours",
    )
    replace(task, **entries).save(path)
    return path


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(words, printed.err), printed.err


def edit(photo: Path, own: Path, task: str, output: str, *more: str) -> list[str]:
    return [
        "edit", str(photo), "draw it", f"--model={own}", f"--task={task}", "-o", output, *more
    ]  # fmt: skip


def test_a_task_is_added_listed_told_of_renamed_and_removed(
    own: Path, file: Path, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(["tasks", "add", str(own), str(file)], capsys) == (
        "added contour to own\nedit with it: emu-edit edit IMAGE "
        '"draw the contours" --task contour --model own -o OUT.png\n'
    )
    rows = json.loads(told(["tasks", "list", str(own), "--json"], capsys))
    assert [row["name"] for row in rows] == [*SIXTEEN.names, "contour"]
    assert rows[0]["kind"] == "base"
    assert rows[0]["description"].startswith("swap one object")
    assert rows[-1] == {
        "name": "contour", "kind": "learned", "pairs": 10, "steps": 300, "created": "2026-11-20",
        "predicted": "no", "description": "draw the outlines",
    }  # fmt: skip
    table = told(["tasks", "list", str(own)], capsys).splitlines()
    assert table[0].split() == list(rows[0])
    assert table[-1].split()[:6] == ["contour", "learned", "10", "300", "2026-11-20", "no"]
    about = json.loads(told(["tasks", "info", str(own), "contour", "--json"], capsys))
    assert (about["base"], about["seed"], about["vector"]["numbers"]) == (base, 3, 8)
    assert told(["tasks", "rename", str(own), "contour", "outline"], capsys) == (
        "contour of own is now outline\n"
    )
    assert read_task_table(own).names[16:] == ("outline",)
    assert told(["tasks", "remove", str(own), "outline"], capsys) == "removed outline from own\n"
    assert read_task_table(own) == SIXTEEN


@pytest.mark.usefixtures("own")
def test_info_tells_of_a_file_in_words(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(["tasks", "info", str(file)], capsys).splitlines()
    assert "learnt       2026-11-20, from 10 pairs, 300 steps, seed 3" in lines
    assert "predictor    does not know it" in lines
    write_task(file, STRANGER, allowed_on="1" * 64, description="", instruction="")
    page = told(["tasks", "info", str(file)], capsys)
    assert f"allowed on   {'1' * 64}, another model" in page
    assert "(its pairs have their own)" in page


def test_add_takes_another_name_and_refuses_one_that_is_taken_or_odd(
    own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add = ["tasks", "add", str(own), str(file)]
    assert main([*add, "--name=outline"]) == 0
    assert main(add) == 0
    assert read_task_table(own).names[16:] == ("contour", "outline")
    capsys.readouterr()
    refused(add, capsys, "own has a task 'contour' already; give another name, or remove")
    refused([*add, "--name=style"], capsys, "own has a task 'style' already")
    refused([*add, "--name=Odd One"], capsys, "a task's name must begin with a-z .* got 'Odd One'")


def test_a_task_of_another_model_is_refused_by_hash_unless_it_is_allowed(
    own: Path, base: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(file, STRANGER)
    add = ["tasks", "add", str(own), str(file)]
    words = f"learnt with the model {STRANGER[:12]}, this one is {base[:12]}; .* --allow-mismatch"
    refused(add, capsys, words)
    assert not (own / LEARNED).exists()
    assert main([*add, "--allow-mismatch"]) == 0
    assert "was learnt with another model; its edits may be poor" in capsys.readouterr().err
    page = told(["tasks", "info", str(own), "contour"], capsys)
    assert f"allowed on   {base}" in page


def test_the_released_model_is_copied_instead_of_changed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hash_of_it = model_hash(load_networks(RELEASED)[0])
    file = write_task(workplace / "contour.safetensors", hash_of_it, vector=torch.ones(64))
    words = "the released model belongs to the installation .* emu-edit tasks add released FILE -o"
    refused(["tasks", "add", "released", str(file)], capsys, words)
    refused(["tasks", "remove", "released", "contour"], capsys, words)
    refused(["tasks", "rename", str(RELEASED), "contour", "b"], capsys, words)
    assert main(["tasks", "add", "released", str(file), "-o", "mine"]) == 0
    assert "added contour to mine" in capsys.readouterr().out
    assert read_task_table("mine").names == (*SIXTEEN.names, "contour")
    assert not (RELEASED / LEARNED).exists()
    refused(["tasks", "add", "released", str(file), "-o", "mine"], capsys, "mine exists; give a")
    assert sorted(path.name for path in workplace.iterdir()) == ["contour.safetensors", "mine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], r"unknown command 'tasks lst'; known: list, info, .* Did you mean 'list'\?"),
        (["list", "nowhere"], "there is no model at nowhere"),
        (["info", "own"], "say which task: emu-edit tasks info MODEL NAME, or emu-edit tasks info"),
        (["info", "own", "contour"], "own has no learned task 'contour'; it has none"),
        (["info", "own", "add"], "'add' is a task the model was trained with; only learned ones"),
        (["info", "gone.safetensors"], r"gone\.safetensors: no such file; give a learned task"),
        (["add", "own", "own/model_index.json"], "cannot read own/model_index.json as a learned"),
        (["remove", "own", "add"], "'add' is a task the model was trained with"),
        (["rename", "own", "style", "look"], "'style' is a task the model was trained with"),
        (["teach", "own", "contour", "draw it"], "own has no learned task 'contour'"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_slip_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["tasks", *arguments], capsys, words)


def test_a_file_and_the_installed_task_edit_to_the_same_pixels(
    photo: Path, own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(photo, own, str(file), "file.png")) == 0
    assert "task contour" in capsys.readouterr().out
    refused(edit(photo, own, "contour", "x.png"), capsys, "unknown task 'contour'; known tasks: lo")
    assert main(["tasks", "add", str(own), str(file)]) == 0
    assert main(edit(photo, own, "contour", "name.png")) == 0
    assert torch.equal(read_image("file.png"), read_image("name.png"))
    assert main(edit(photo, own, "contour+style:0.5", "mix.png")) == 0


def test_a_file_can_be_part_of_a_mix(
    photo: Path, own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(photo, own, f"style+{file}:0.25", "file.png")) == 0
    assert "task style+contour:0.25" in capsys.readouterr().out
    Path("a+b").mkdir()
    shutil.copy(file, "a+b")
    assert main(edit(photo, own, f"a+b/{file.name}", "plus.png")) == 0
    capsys.readouterr()
    refused(edit(photo, own, "style+gone.safetensors", "x.png"), capsys, "--task gone.safetensors:")
    refused(
        edit(photo, own, f"{file}:0.5+style:0.5", "x.png"),
        capsys,
        r"the share is that of the second task alone; write FIRST\+SECOND:0\.5",
    )
    assert main(["tasks", "add", str(own), str(file)]) == 0
    assert main(edit(photo, own, "style+contour:0.25", "name.png")) == 0
    assert torch.equal(read_image("file.png"), read_image("name.png"))


def test_a_training_that_would_lose_learned_tasks_is_refused_before_it_begins(
    own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "add", str(own), str(file)]) == 0
    (own.parent / "run").mkdir()
    own.rename(own.parent / "run" / "model")
    capsys.readouterr()
    assert main(["fit", "--run=run", "--resume=auto"]) == ExitStatus.config
    words = r"run/model has the learned tasks contour, .*\(mv run/model run/model-kept\) and give"
    assert re.search(words, capsys.readouterr().err)
    assert [path.name for path in Path("run").iterdir()] == ["model"]


def test_the_old_tasks_write_the_same_files_before_and_after(
    photo: Path, own: Path, file: Path
) -> None:
    names = ("local", "segmap")
    for name in names:
        assert main(edit(photo, own, name, f"{name}.png")) == 0
    assert main(["tasks", "add", str(own), str(file)]) == 0
    for name in names:
        assert main(edit(photo, own, name, "again.png")) == 0
        assert Path("again.png").read_bytes() == Path(f"{name}.png").read_bytes()


def test_a_task_file_that_cannot_be_used_is_one_line(
    photo: Path, own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "gone.safetensors"
    refused(edit(photo, own, gone, "x.png"), capsys, f"--task {gone}: no such file; give a learned")
    refused(
        edit(photo, own, "local", "x.png", "--allow-mismatch"),
        capsys,
        "--allow-mismatch is for a learned task given as a file",
    )
    other = write_task(Path("other.safetensors"), STRANGER)
    refused(edit(photo, own, str(other), "x.png"), capsys, "other.safetensors: task contour was le")
    assert main(edit(photo, own, str(other), "x.png", "--allow-mismatch")) == 0
    capsys.readouterr()
    two = ["edit", str(photo), "a", "b", f"--task={file}", f"--task={other}", "-o", "x.png"]
    refused([*two, f"--model={own}"], capsys, "both hold a task 'contour'; copy one into a model")
    taken = write_task(Path("taken.safetensors"), STRANGER, name="style")
    refused(
        edit(photo, own, str(taken), "x.png", "--allow-mismatch"),
        capsys,
        "taken.safetensors: the model was trained with a task 'style'",
    )


def test_a_session_with_a_task_file_replays_with_the_file(
    photo: Path, own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edit(photo, own, str(file), "out")) == 0
    replay = ["edit", "out/original.png", "--replay=out/manifest.json", f"--model={own}", "-o"]
    capsys.readouterr()
    refused([*replay, "x.png"], capsys, r"uses the learned task 'contour', .*--task contour\.safe")
    refused([*replay, "x.png", "--task=local"], capsys, "--replay takes the turns from the manif")
    assert main([*replay, "again", f"--task={file}"]) == 0
    assert torch.equal(read_image("out/turn-01.png"), read_image("again/turn-01.png"))
    assert "does not have the pixels" not in capsys.readouterr().err
    other = write_task(Path("other.safetensors"), load_base(file), vector=torch.ones(8))
    refused(
        [*replay, "x.png", f"--task={other}"], capsys, "made with another vector of the learned"
    )


def load_base(file: Path) -> str:
    return LearnedTask.load(file).base


@pytest.fixture
def guessing(own: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model with an untrained predictor: it takes everything for the first task."""
    for name, count in (("WORLD_TEXTS", 32), ("PARAPHRASED_TEXTS", 32), ("EVERYDAY_TEXTS", 32)):
        monkeypatch.setattr(instructions, name, count)
    monkeypatch.setattr(predictor_row, "NEW_TEXTS", 40)
    monkeypatch.setattr(predictor_row, "OLD_TEXTS", 64)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        encoder = TinyText(dim=32, num_layers=1, num_heads=2, max_tokens=400)
    TaskPredictor(encoder, SIXTEEN).save_pretrained(own / "predictor")
    return own


@pytest.mark.slow
def test_taught_phrases_are_edited_without_naming_the_task_until_the_predictor_is_another(
    photo: Path, guessing: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "add", str(guessing), str(file)]) == 0
    capsys.readouterr()
    teach = ["tasks", "teach", str(guessing), "contour", *PHRASES]
    assert told(teach, capsys) == "the predictor of own knows contour now\n"
    assert json.loads(told(["tasks", "list", str(guessing), "--json"], capsys))[-1][
        "predicted"
    ] == ("yes")
    unnamed = ["edit", str(photo), PHRASES[0], f"--model={guessing}", "-o", "out.png", "--json"]
    assert json.loads(told(unnamed, capsys))["turns"][0]["task"] == "contour"
    fit = ["predictor", "fit", str(guessing), "--steps=2", "--batch=16"]
    assert "does not know the learned tasks contour; teach it each" in told(fit, capsys)
    assert "learnt for another predictor" in told(["tasks", "list", str(guessing)], capsys)
    assert Editor.from_pretrained(guessing).predict_tasks(["draw it"])[0].task in SIXTEEN.names


def test_a_model_without_a_predictor_cannot_be_taught(
    own: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "add", str(own), str(file)]) == 0
    capsys.readouterr()
    refused(["tasks", "teach", str(own), "contour", "x"], capsys, "own has no task predictor; trai")


def test_a_model_with_learned_tasks_is_not_exported_over(
    own: Path, file: Path, model: Path
) -> None:
    assert main(["tasks", "add", str(own), str(file)]) == 0
    with pytest.raises(ValueError, match="has the learned tasks contour, which would be lost"):
        Editor.from_pretrained(model).save_pretrained(own)


@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio (the extra app)")
@pytest.mark.filterwarnings("ignore")
def test_the_web_page_offers_the_learned_task_with_its_description(
    own: Path, file: Path, tmp_path: Path
) -> None:
    from emu_edit.web.guard import Limits
    from emu_edit.web.handlers import Handlers
    from emu_edit.web.page import build_page

    assert main(["tasks", "add", str(own), str(file)]) == 0
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    page = build_page(Handlers(Editor.from_pretrained(own), Limits(), tmp_path))
    parts = page.get_config_file()["components"]
    (task,) = [part["props"] for part in parts if part["props"].get("elem_id") == "task"]
    assert tuple(task["choices"][-1]) == ("contour: draw the outlines", "contour")
    asyncio.set_event_loop(None)
    loop.close()
    gc.collect()
