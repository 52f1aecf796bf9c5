"""Photographs and what a model makes of them: a grid to look at, a row each, a column a request.

    python -m benchmarks.photograph_grid -o GRID.jpg [PHOTOGRAPH ...] [--model released]
                                         [--side 256] [--requests "make it night" ...]

Without names, the photographs are the installed ones that training leaves out (see
`datamodules/world/photographs.yaml`). Each is cut to its middle square of `--side` px and edited as
`emu-edit edit` does it: the task is predicted, and the change of a small copy is put on the full
size. Below each picture stands the task, with a question mark where the predictor is unsure; beside
the grid, GRID.json has the photographs with licence and author, the tasks and their confidence.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from datamodules.world.photographs import INSTALLED, Photograph, Photos
from emu_edit.cli.arguments import positive_int
from emu_edit.editing.editor import Editor
from emu_edit.editing.session import EditSession
from emu_edit.files import write_json
from emu_edit.images import from_pil, read_image, to_pil
from emu_edit.terminal import step_bar

REQUESTS = (
    *("make it black and white", "turn it into a pencil sketch", "make it night"),
    *("make it winter", "warm evening light", "make it look like a watercolor"),
)
CELL, GAP, LINE = 128, 6, 16  # px


def main() -> int:
    """Edit every photograph by every request and write the grid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", nargs="*", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="released")
    parser.add_argument("--side", type=positive_int, default=256)
    parser.add_argument("--requests", nargs="+", default=REQUESTS)
    options = parser.parse_args()
    if missing := [path for path in options.photographs if not path.is_file()]:
        parser.error(f"there is no photograph {missing[0]}")
    known = {photo.path: photo for photo in Photos(INSTALLED).photographs}
    given = [known.get(path, Photograph(path, path.name)) for path in options.photographs]
    photographs = given or Photos(INSTALLED).split()[1].photographs
    editor = Editor.from_pretrained(options.model)
    rows = []
    with step_bar("editing", "photographs") as on_step:
        for done, photograph in enumerate(photographs, start=1):
            square = (options.side, options.side)
            source = ImageOps.fit(to_pil(read_image(photograph.path)), square)
            rows.append((source, [edited(editor, source, text) for text in options.requests]))
            on_step(done, len(photographs))
    grid(options.requests, rows).save(options.output, quality=88)
    about = [
        {
            **{"name": photo.name, "licence": photo.licence, "author": photo.author},
            "tasks": {text: told for text, (_, told) in zip(options.requests, row, strict=True)},
        }
        for photo, (_, row) in zip(photographs, rows, strict=True)
    ]
    write_json(options.output.with_suffix(".json"), {"model": options.model, "photographs": about})
    return 0


def edited(editor: Editor, source: Image.Image, request: str) -> tuple[Image.Image, str]:
    """Return the edited photograph, and the task that was predicted, with its confidence."""
    assert editor.predictor is not None
    (prediction,) = editor.predictor.predict([request])
    session = EditSession.start(editor, from_pil(source)).edit(request)
    sure = "" if prediction.is_sure else "?"
    return to_pil(session.image), f"{prediction.task}{sure} {prediction.confidence:.0%}"


def grid(
    requests: tuple[str, ...], rows: list[tuple[Image.Image, list[tuple[Image.Image, str]]]]
) -> Image.Image:
    """Draw the photographs on the left and their edits beside them."""
    width, height = CELL + GAP, CELL + GAP + LINE
    columns = ("as it is", *requests)
    page = Image.new("RGB", (GAP + width * len(columns), LINE + height * len(rows) + GAP), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for column, text in enumerate(columns):
        draw.text((GAP + column * width, 2), text, fill="black", font=font)
    for number, (source, edits) in enumerate(rows):
        top = LINE + number * height
        for column, (picture, told) in enumerate([(source, ""), *edits]):
            page.paste(
                picture.resize((CELL, CELL), Image.Resampling.LANCZOS),
                (GAP + column * width, top + 2),
            )
            draw.text((GAP + column * width, top + CELL + 3), told, fill="gray", font=font)
    return page


if __name__ == "__main__":
    raise SystemExit(main())
