"""`make_clip`: an edited clip of the world as a pure function of seed, split, index and task.

The edit is one of the sixteen of pictures, drawn once. Its scenes before and after are then moved,
and what drew the still pair draws every frame of source and target, so the first frame is a pair of
pictures as any other, and the ground truth of all frames is exact. Figures keep name, colour, shape
and pattern over the whole clip. Flow and occlusion are those of the scenes of the source; of an
edited clip they can be had by `optical_flow` of its own scenes.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from datamodules.world.clips.flow import optical_flow
from datamodules.world.clips.shot import STARTS, Shot, draw_shot, flat_shot, other_side
from datamodules.world.instructions import background_words, pick
from datamodules.world.pair import EDITS
from datamodules.world.scene import AT_REST, Scene, View
from datamodules.world.studio import FLAT, Studio, WorldPair, rendered
from emu_edit.errors import InputError
from emu_edit.tasks import CAPTION, SIXTEEN

VERSION = 1  # of the clips: raised whenever the same seed and index give another clip
MOST_FRAMES = 1024
CUT = 0.3  # the share of clips with a cut
FEWEST_TO_CUT = 6  # frames
CUT_AT = (0.35, 0.65)  # the share of the clip that is over when it comes


@dataclass(frozen=True)
class ClipPair:
    """A clip before and after an edit, with exact ground truth for every frame.

    Attributes:
        key: unlike that of any other clip of the world.
        source: the frames before the edit.
        target: those after it.
        instruction: asks for the edit.
        task: one of the sixteen.
        caption: what the source shows, and what moves where.
        output_caption: the same of the target.
        mask: where the frames of the target may differ.
        scenes: what the frames of the source show; edits that filter or draw maps have the same
            scenes before and after.
        output_scenes: what those of the target show.
        flow: of the source: where what is seen in a frame is in the next: (x, y) in pixels, to the
            right and down. At a cut it is 0.
        occluded: what is seen in a frame and not in the next; everything at a cut.
        cuts: the first frame of each shot but the first.
        extra: kind and words of the edit, those of places as they are in the first frame.
    """

    key: str
    source: UInt8[np.ndarray, "f 3 h w"]
    target: UInt8[np.ndarray, "f 3 h w"]
    instruction: str
    task: str
    caption: str
    output_caption: str
    mask: Bool[np.ndarray, "f h w"]
    scenes: tuple[Scene, ...]
    output_scenes: tuple[Scene, ...]
    flow: Float32[np.ndarray, "_ 2 h w"]
    occluded: Bool[np.ndarray, "_ h w"]
    cuts: tuple[int, ...] = ()
    extra: dict[str, object] = field(default_factory=dict)


def make_clip(
    seed: int,
    split: str,
    index: int,
    *,
    task: str | None = None,
    size: int = 64,
    frames: int = 16,
) -> ClipPair:
    """Return the clip of an index; what it shows does not depend on the size.

    Args:
        seed: of the world; two seeds share no clips.
        split: as of pairs, see `datamodules.world.pair.make_pair`.
        index: at least 0.
        task: one of the sixteen; by default `index % 16`.
        size: side of the frames in pixels, at least 16.
        frames: how many; a clip of more frames is a slower one. With fewer than six there is no
            cut.

    Raises:
        InputError: if the task or split is unknown, the index negative, or a size out of range.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(f"frames={frames} of a world clip must be 1 to {MOST_FRAMES}")
    name = SIXTEEN.names[index % len(SIXTEEN) if task is None else SIXTEEN.index(task)]
    studio = Studio.of(
        f"clip {name}", f"clip-{name}", seed, index, size=size, split=split, photos=None
    )
    still = EDITS[name](studio)
    shots = _shots(studio, still, frames)
    return _filmed(studio, still, shots)


def make_flat_clip(
    seed: int, split: str, index: int, *, size: int = 32, frames: int = 8
) -> ClipPair:
    """Return a clip nobody edited, of a flat scene: one or two things that stand still or move.

    Task, arguments and errors are those of `make_caption` and `make_clip`; the instruction is the
    caption, and source and target are the same.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(f"frames={frames} of a world clip must be 1 to {MOST_FRAMES}")
    studio = Studio.of("clip flat", "clip-flat", seed, index, size=size, split=split, photos=None)
    scene = studio.scene(FLAT)[0]
    picture = studio.render(scene)
    still = WorldPair(
        key=studio.key,
        source=picture,
        target=picture,
        instruction=scene.caption,
        task=CAPTION,
        mask=np.zeros(picture.shape[:2], dtype=np.bool_),
        source_caption=scene.caption,
        target_caption=scene.caption,
        extra={"kind": CAPTION},
        scenes=(scene, scene),
        draw=rendered,
    )
    return as_captioned(_filmed(studio, still, [flat_shot(studio, scene, frames)]))


def as_captioned(clip: ClipPair) -> ClipPair:
    """Return what is there before an edit, with its caption for an instruction."""
    return replace(
        clip,
        task=CAPTION,
        target=clip.source,
        instruction=clip.caption,
        output_caption=clip.caption,
        extra={},
    )


def _shots(studio: Studio, still: WorldPair, frames: int) -> list[Shot]:
    """Return the one or two shots of a still pair set in motion."""
    if still.scenes is None:
        raise ValueError(f"{still.key} has no scenes; it cannot move")
    before, after = still.scenes
    is_cut, share = studio.chance(CUT), studio.between(*CUT_AT)
    # a place that is free in one shot may be taken in another
    is_cut = is_cut and frames >= FEWEST_TO_CUT and still.task != "add"
    first = round(share * frames) if is_cut else frames
    shots = [draw_shot(studio, before, after, first, AT_REST)]
    if is_cut:
        side = pick(studio.generator, STARTS)
        tells_background = still.extra["kind"] == "from_map"
        scenes = other_side(studio, before, after, keeps_background=tells_background)
        corner = (1 - side) / 2
        shots.append(draw_shot(studio, *scenes, frames - first, View(corner, corner, side)))
    return shots


def _filmed(studio: Studio, still: WorldPair, shots: list[Shot]) -> ClipPair:
    """Return the frames of some shots, and the truth about them."""
    if still.draw is None:
        raise ValueError(f"{still.key} has nothing that draws it; it cannot move")
    scenes = [shot.frame(i) for shot in shots for i in range(shot.frames)]
    cuts = tuple(np.cumsum([shot.frames for shot in shots])[:-1].tolist())
    drawn = [still.draw(studio, before, after) for before, after in scenes]
    sources, targets, masks = zip(*drawn, strict=True)
    flow, occluded = _flow([before for before, _ in scenes], cuts, studio.size)
    captions = _captions(still, shots)
    return ClipPair(
        key=still.key,
        source=_stacked(sources),
        target=_stacked(targets),
        instruction=still.instruction,
        task=still.task,
        caption=captions[0],
        output_caption=captions[1],
        mask=np.stack(masks),
        scenes=tuple(before for before, _ in scenes),
        output_scenes=tuple(after for _, after in scenes),
        flow=flow,
        occluded=occluded,
        cuts=cuts,
        extra=still.extra,
    )


def _flow(
    scenes: list[Scene], cuts: tuple[int, ...], size: int
) -> tuple[Float32[np.ndarray, "_ 2 h w"], Bool[np.ndarray, "_ h w"]]:
    """Return flow and occlusion between neighbouring frames; at a cut nothing is seen again."""
    flow = np.zeros((len(scenes) - 1, 2, size, size), dtype=np.float32)
    occluded = np.ones((len(scenes) - 1, size, size), dtype=np.bool_)
    for i in range(len(scenes) - 1):
        if i + 1 not in cuts:
            flow[i], occluded[i] = optical_flow(scenes[i], scenes[i + 1], size)
    return flow, occluded


def _stacked(pictures: tuple[UInt8[np.ndarray, "h w 3"], ...]) -> UInt8[np.ndarray, "f 3 h w"]:
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def _captions(still: WorldPair, shots: list[Shot]) -> tuple[str, str]:
    """Return what source and target show: the caption of the first frame, then what moves."""
    kind = still.extra["kind"]
    befores, afters = [shot.before for shot in shots], [shot.after for shot in shots]
    # a marked figure is still called what it is
    named = befores if still.task == "segment" else afters
    source = _story(shots, befores, is_map=kind == "from_map")
    target = _story(shots, named, is_map=kind == "to_map")
    return f"{still.source_caption}; {source}", f"{still.target_caption}; {target}"


def _story(shots: list[Shot], scenes: list[Scene], *, is_map: bool) -> str:
    """Return what moves in each shot, and where the later ones are; a map does not show where."""
    parts = []
    for shot, scene in zip(shots, scenes, strict=True):
        where = "" if is_map else f" to {background_words(scene.background.name)}"
        parts.append(f"cut{where}: {shot.words(scene)}" if parts else shot.words(scene))
    return "; ".join(parts)
