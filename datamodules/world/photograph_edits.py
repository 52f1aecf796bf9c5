"""Edits of photographs: the whole picture, the background behind figures, the sky.

The target is computed from the source's bytes, so it is a function of what the model sees. A third
of the sources of light, colour and style have figures of the world before the photograph, so that
an edit means the same with and without them. A photograph on which an edit would hardly be seen
gives way to another; so does one without a sky for those of the sky.
"""

from collections.abc import Callable

import numpy as np

from datamodules.world.filters import Picture, grayscale
from datamodules.world.instructions import photograph_kinds, pick
from datamodules.world.photograph_filters import COLOURS, WEATHER, Filter, blur, soften
from datamodules.world.photograph_sky import SKIES, coloured_sky, find_sky
from datamodules.world.photograph_styles import STYLES, line_drawing, lines
from datamodules.world.phrasings import PHOTOGRAPH_CAPTIONS
from datamodules.world.render import coverage, quantise, render
from datamodules.world.scene import Background, Crop, Scene
from datamodules.world.studio import Change, Drawn, Rules, Studio, WorldPair, everywhere

FILTERS: dict[str, Filter] = {
    f"photo_{name}": function
    for name, function in {**WEATHER, **STYLES, **COLOURS, "lines": line_drawing}.items()
}
BEHIND: dict[str, Filter] = {"photo_blur_background": blur, "photo_gray_background": grayscale}
SHARPEN, SKY = "photo_sharpen", "photo_sky"
WITH_FIGURES = 0.3  # of the edits of the whole picture
REFERENCE = 48  # px at which a photograph is chosen, so that the choice does not depend on the size
DRAWS = 12  # photographs, until one suits
LEAST_CHANGE = {"photo_autumn": 14.0, "photo_sharpen": 3.0, "photo_blur_edges": 3.0}
USUAL_CHANGE = 7.0  # mean of all values, of 255, by which an edit can be seen
DRAWN = {"photo_lines", "photo_blueprint", "photo_pencil"}  # where there must be something to draw:
LEAST_INK = 0.06  # mean share of lines


def of_photograph(task: str) -> Callable[[Studio], WorldPair | None]:
    """Return the edit of a task on photographs: of a kind that is seen on some, None if none is."""

    def edit(studio: Studio) -> WorldPair | None:
        kinds = photograph_kinds(task)
        order = [kinds[i] for i in studio.generator.permutation(len(kinds)).tolist()]
        made = (_sky(studio) if kind == SKY else _filtered(studio, task, kind) for kind in order)
        return next((pair for pair in made if pair is not None), None)

    return edit


def _filtered(studio: Studio, task: str, kind: str) -> WorldPair | None:
    function = soften if kind == SHARPEN else {**FILTERS, **BEHIND}[kind]
    crop = _suiting(studio, kind, function)
    if crop is None:
        return None
    background = Background("photograph", crop)
    return (_behind if kind in BEHIND else _whole)(studio, task, kind, background)


def _whole(studio: Studio, task: str, kind: str, background: Background) -> WorldPair:
    """Filter a photograph, often with figures before it."""
    sharpens = kind == SHARPEN
    function = soften if sharpens else FILTERS[kind]
    scene = Scene.of(background, ())
    if task != "sketch" and studio.chance(WITH_FIGURES):
        scene = _before(studio, background)

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        del after  # the same scene
        plain = studio.render(before)
        filtered = quantise(function(plain.astype(np.float32)))
        return everywhere(filtered, plain) if sharpens else everywhere(plain, filtered)

    return _pair(studio, Change(task, kind, scene, {}), draw)


def _behind(studio: Studio, task: str, kind: str, background: Background) -> WorldPair:
    """Change the photograph behind figures, which stay as they are."""

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        del after  # the same scene
        photos, crop = studio.photos, before.background.crop
        assert photos is not None
        assert crop is not None
        behind = photos.picture(crop, studio.size).astype(np.float32)
        share = coverage(before, studio.size).background[:, :, None]
        picture = render(before, studio.size, photos)
        changed = picture + share * (BEHIND[kind](behind) - behind)
        return quantise(picture), quantise(changed), share[:, :, 0] > 0

    return _pair(studio, Change(task, kind, _before(studio, background), {}), draw)


def _sky(studio: Studio) -> WorldPair | None:
    """Give the sky another colour; nothing else changes."""
    photos = studio.photos
    assert photos is not None
    crops = (photos.draw(studio.generator) for _ in range(DRAWS))
    # at the size of the pair, too: what is found in a small picture may be lost in a large one
    suiting = (
        crop
        for crop in crops
        if photos.of(crop).has_sky
        and all(_sky_of(studio, crop, size) is not None for size in (REFERENCE, studio.size))
    )
    crop = next(suiting, None)
    if crop is None:
        return None
    colour = pick(studio.generator, tuple(SKIES))

    def draw(studio: Studio, before: Scene, after: Scene) -> Drawn:
        del after  # the same scene
        source = studio.render(before)
        sky = find_sky(source.astype(np.float32))
        assert sky is not None
        target = quantise(coloured_sky(source.astype(np.float32), sky, colour))
        return source, target, sky[:, :, 0] > 0

    scene = Scene.of(Background("photograph", crop), ())
    return _pair(studio, Change("local", SKY, scene, {"colour": colour}), draw)


def _sky_of(studio: Studio, crop: Crop, size: int) -> np.ndarray | None:
    return find_sky(_seen(studio, crop, size))


def _suiting(studio: Studio, kind: str, function: Filter) -> Crop | None:
    """Return a square of a photograph on which a filter is seen; None if it is on none drawn."""
    assert studio.photos is not None
    least = LEAST_CHANGE.get(kind, USUAL_CHANGE)
    for _ in range(DRAWS):
        crop = studio.photos.draw(studio.generator)
        picture = _seen(studio, crop, REFERENCE)
        if kind in DRAWN and lines(picture, 0.55 / REFERENCE, 7.0).mean() < LEAST_INK:
            continue
        if np.abs(quantise(function(picture)) - picture).mean() >= least:
            return crop
    return None


def _seen(studio: Studio, crop: Crop, size: int) -> Picture:
    assert studio.photos is not None
    return studio.photos.picture(crop, size).astype(np.float32)


def _before(studio: Studio, background: Background) -> Scene:
    """Return a scene with figures before a photograph."""
    return studio.scene(Rules(word=0.1), background)[0]


def _pair(
    studio: Studio, change: Change, draw: Callable[[Studio, Scene, Scene], Drawn]
) -> WorldPair:
    """Return the pair of a scene before a photograph that an edit leaves as it is."""
    scene = change.after
    shown = scene.caption if scene.figures else "a photograph"
    remark = PHOTOGRAPH_CAPTIONS[change.kind].format_map(change.words)
    return studio.drawn(change, draw, scene, (shown, f"{shown}, {remark}"))


# task -> its edit of photographs, and the share of a world of photographs alone that is such edits
EDITS: dict[str, tuple[Callable[[Studio], WorldPair | None], float]] = {
    "global": (of_photograph("global"), 1.0),
    "style": (of_photograph("style"), 1.0),
    "color": (of_photograph("color"), 1.0),
    "sketch": (of_photograph("sketch"), 0.5),  # else from a sketch, or one of a scene
    "local": (of_photograph("local"), 0.15),
}
