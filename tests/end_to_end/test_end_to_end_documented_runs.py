"""README, docs and recipes, page by page from an empty folder: each command is run, but short."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from emu_edit.cli.main import main
from emu_edit.runs.options import recipe_names
from tests.end_to_end.documented import (
    PAGES,
    PLACEHOLDERS,
    RECIPES,
    Shown,
    blocks,
    commands,
    files_of,
    inline_commands,
)
from tests.end_to_end.documented_things import (
    FLUX2_DEV,
    FLUX3,
    HUB_NAME,
    KLEIN,
    KONTEXT,
    LONGCAT,
    QWEN,
    SDXL,
    Things,
    read_by,
)
from tests.runs.test_runs_configs import ON_A_CPU, PUBLISHED, SMALLER, skip_without_accelerate

pytestmark = pytest.mark.slow
# what takes more than a few steps; the parser's test takes it, other tests do the like
NOT_RUN = {
    "app": "serves until it is stopped: test_end_to_end_app.py",
    "released_model.md": "each of its trainings goes on from the one before",
}
FEW = (
    *ON_A_CPU,
    "--trainer.num_nodes=1",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--data.steps_per_epoch=2",
    "--no_predictor",
)
FEW_PAIRS = ("--data.global_batch=2", "--data.image_size=16", "--score_pairs=0")
FEW_OF_THE_WORLD = (*FEW_PAIRS, "--data.pairs=32", "--data.noop_pairs=2")
# options that make a command short: the last of two equal ones counts
SHORT = {
    "shards cache": ("--image-size=16", "--device=cpu", "--workers=0"),
    "predictor fit": ("--steps=2",),
    "predictor evaluate": ("--texts=32",),
    "edit": ("--steps=1",),
    "video": ("--steps=1",),
    "generate": ("--steps=1",),
    "interpolate": ("--steps=1",),
    "tune": ("--steps=1",),
    "invert": ("--steps=2", "--batch=2", "--init=mean"),
}


def short_training(arguments: list[str]) -> tuple[str, ...]:
    """Return what makes a training one of two steps of a small model."""
    recipe = arguments[arguments.index("--config") + 1] if "--config" in arguments else "tiny"
    if recipe == "inversion":
        return (*FEW, "--data.image_size=16", "--data.batch_size=2")
    drawing = (*(option for option in FEW if option != "--no_predictor"), *FEW_PAIRS)  # has none
    if recipe.startswith("emu_video") or recipe == "eve":
        return drawing
    if recipe == "edit_adapter":
        return (*FEW, *FEW_OF_THE_WORLD[:-1])
    if recipe == "text_to_image":
        return (*drawing, "--data.pictures=64", *SMALLER[recipe])
    if recipe in PUBLISHED:
        _, small, _ = PUBLISHED[recipe]
        return (*FEW, *FEW_PAIRS, "--data.micro_batch=2", "--data.num_workers=0", *small)
    if recipe not in SMALLER:  # sd15, and what is made of it
        return (*FEW, *FEW_PAIRS, "--data.micro_batch=2", "--data.num_workers=0")
    few = FEW_PAIRS if recipe == "pairs" else FEW_OF_THE_WORLD
    return (*FEW, *few, *SMALLER[recipe])


def short_evaluation(arguments: list[str]) -> tuple[str, ...]:
    """Return what makes an evaluation one of an edit or two."""
    steps = () if "results" in arguments else ("--steps=1",)
    if "emu-edit" in arguments or "magicbrush" in arguments:
        limit = () if "results" in arguments else ("--limit=1", "--size=16")
        return (*steps, *limit, "--backbones", "backbones")
    if "--drift" in arguments:
        return (*steps, "--sessions=2", "--turns=2")
    if "--write-inputs" in arguments:
        return ("--pairs=1", "--size=16")
    if {"world-video", "world-clips"} & {*arguments}:
        return (*steps, "--pairs=1", "--size=16", "--frames=2")
    return () if "--data" in arguments else (*steps, "--pairs=1")


def shortened(arguments: list[str]) -> list[str]:
    """Return a command line with options that make it short."""
    match arguments:
        case ["fit", *_] if "--print_config" not in arguments:
            extra = short_training(arguments)
        case ["evaluate", *_]:
            extra = short_evaluation(arguments)
        case ["shards", "world", *_] if "--clips" in arguments:
            extra = ("--clips=2", "--size=16")
        case ["shards", "convert", *_] if "--part" in arguments:
            extra = ("--held-out=0.2",)
        case ["edit", *_] if "--replay" in arguments:
            extra = ()
        case [verb, *_] if verb in SHORT:
            extra = SHORT[verb]
        case _:
            extra = SHORT.get(" ".join(arguments[:2]), ())
    return [*arguments, *extra]


def to_run(page: Path) -> list[Shown]:
    """Return a page's commands of ours, and the trainings that its sentences show whole.

    A training that another page has begun with the same words is not run twice, unless this page
    goes on with its run.
    """
    earlier = [*RECIPES, *PAGES]
    earlier = earlier[: earlier.index(page)]
    known = {shown.arguments for other in earlier for shown in commands(other)}
    found = []
    own = commands(page)
    for number, shown in enumerate([*own, *(inline_commands(page) if page in PAGES else ())]):
        arguments = shown.arguments
        if not arguments or (shown.is_inline and arguments[:2] != ("fit", "--config")):
            continue
        run = arguments[arguments.index("--run") + 1] if "--run" in arguments else None
        is_needed = any(run in (later.arguments or ()) for later in own[number + 1 :])
        is_known = arguments[0] == "fit" and arguments in known and not is_needed
        if arguments[0] in NOT_RUN or is_known:
            continue
        known.add(arguments)
        found.append(shown)
    return found


PAGES_WITH_COMMANDS = [
    page
    for page in (*RECIPES, *PAGES)
    if page.name not in NOT_RUN and (to_run(page) or blocks(page, "python"))
]


def run(shown: Shown, things: Things) -> int:
    """Run a command, with what it reads at hand; return the exit status."""
    arguments = [PLACEHOLDERS.get(word, word) for word in shown.arguments or ()]
    arguments = shortened(arguments)
    things.provide(read_by(arguments), shown.page)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            status = main(arguments)
    except SystemExit as end:  # of --print_config
        status = int(end.code or 0)
    if shown.output:
        Path(shown.output).write_text(printed.getvalue())
    return status


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.name)
def test_a_page_works_from_an_empty_folder(
    page: Path,
    workplace: Path,
    model: Path,
    stable_diffusion: Path,
    backbones: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if page.stem == "eve":
        pytest.importorskip("peft")
    skip_without_accelerate(page.stem)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    things = Things(model, stable_diffusion, backbones)
    things.provide([FLUX2_DEV, FLUX3, HUB_NAME, KLEIN, KONTEXT, LONGCAT, QWEN, SDXL], page.name)
    for name, content in files_of(page) if page in PAGES else ():
        (workplace / name).write_text(content.replace("/models/sd15", HUB_NAME))
    failed = {str(shown): status for shown in to_run(page) if (status := run(shown, things)) != 0}
    assert not failed
    for block in blocks(page, "python"):
        things.provide([word.strip('"()') for word in block.split('"')], page.name)
        exec(compile(block, page.name, "exec"), {"__name__": page.stem})


def test_every_recipe_is_run() -> None:
    words = {word for page in PAGES_WITH_COMMANDS for shown in to_run(page) for word in shown.words}
    assert set(recipe_names()) <= words | {"tiny"}
