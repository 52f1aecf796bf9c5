"""`emu-edit tune IN "caption" -o DIR`: tune a picture model on one video, to edit that."""

import sys
from pathlib import Path

from emu_edit.cli.arguments import ArgumentParser, importing, positive_int, seed_int
from emu_edit.errors import InputError
from emu_edit.text_rules import clean_instruction

MOST = 64  # frames: all are in memory, and see each other

EPILOG = """\
IN is a video, an animated GIF, PNG or WebP, or a folder of pictures, of at most 64 frames. The
model draws pictures: a run of --config text_to_image, or a Stable Diffusion 1.x or 2.x directory.

exit status: 0 done; 2 nothing could be done, standard error says why in one line; 130 interrupted.
"""


def parser() -> ArgumentParser:
    """Build the verb's parser."""
    made = ArgumentParser(
        prog="emu-edit tune",
        description="Tune a picture model on one video, which it then draws by other captions.",
        epilog=f"{EPILOG}\nexamples:\n"
        '  emu-edit tune clip.mp4 "a man is surfing" --model sd15 -o surfing\n'
        '  emu-edit video clip.mp4 "an astronaut is surfing" --model surfing -o astronaut.mp4',
    )
    made.add_argument("video", metavar="IN", help="video, animation, or folder of pictures")
    made.add_argument("caption", metavar="CAPTION", help="what it shows")
    made.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="the model")
    made.add_argument("--model", type=Path, help="what draws: model directory or run folder")
    made.add_argument("--device", help="cpu, cuda, … (default: an accelerator if there is one)")
    made.add_argument("--size", type=positive_int, help="shorter side in pixels (default: model's)")
    made.add_argument("--steps", type=positive_int, default=500, help="of tuning (default 500)")
    made.add_argument("--lr", type=float, default=3e-5, help="learning rate (default 3e-5)")
    made.add_argument("--head-dim", type=positive_int, default=64, help="of temporal attention")
    made.add_argument(
        "--plain", action="store_true", help="plain temporal attention, to compare with"
    )
    made.add_argument("--seed", type=seed_int, default=0, help="same seed, same model on a CPU")
    return made


def run(arguments: list[str]) -> int:
    """Tune a model; return the exit status.

    Raises:
        InputError: if video, caption, model or output cannot be used.
    """
    options = parser().parse(arguments)
    caption = clean_instruction(options.caption, what="caption")
    from emu_edit.models.directory import INDEX, refuse_another_kind

    refuse_another_kind(options.output, INDEX, what="model directory")
    with importing():
        import torch

        from emu_edit.editing.animate import find_drawer
        from emu_edit.editing.find import choose_device
        from emu_edit.terminal import step_bar
        from emu_edit.training.tuning import TuneSettings, tune
        from emu_edit.video.io import open_video

    settings = TuneSettings(
        options.steps, options.lr, options.plain, options.head_dim, options.seed
    )
    video = open_video(options.video)
    if not 1 <= video.info.frames <= MOST:
        raise InputError(
            f"{options.video}: has {video.info.frames} frames, a model is tuned on 1 to {MOST}; "
            "cut it with 'emu-edit video --start --end', or take every other frame"
        )
    model = find_drawer(options.model)
    frames = torch.stack([frame.pixels for frame in video.frames()])
    with step_bar("tuning", "steps") as on_step:
        tuned = tune(
            str(model),
            frames,
            caption,
            settings,
            rate=max(1, round(video.info.rate)),
            size=options.size,
            device=choose_device(options.device),
            on_step=on_step,
        )
    tuned.save_pretrained(options.output)
    sys.stdout.write(
        f"{options.output}: tuned on {len(frames)} frames; edit them with\n"
        f'  emu-edit video {options.video} "another caption" --model {options.output} '
        f"--size {tuned.animator.video.settings.image_size} -o edited.mp4\n"
    )
    return 0
