"""The sentences of the world: how one may ask for each kind of edit; some are held out.

Slots in braces are filled by `instructions`. "{thing}" is always colour and shape, which name
exactly one figure. The sentences of two tasks that look alike on simple pictures must differ in
words: `local` says make or turn, `segment` says mark or segment, `global` speaks of the whole
scene, `background` always says what is behind.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasings:
    """Templates used in training, and templates only used to test."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


def _maps(thing: str, verb: str) -> dict[str, Phrasings]:
    """Return both directions of an image-to-image task: the map's name, how it is made."""
    return {
        "to_map": Phrasings(
            train=(
                f"turn this picture into a {thing}",
                f"make a {thing} of this picture",
                f"{verb} the {thing} of this image",
                f"convert the photo to a {thing}",
                f"show me the {thing}",
                f"give me a {thing} of the scene",
            ),
            heldout=(f"what is the {thing} of this picture?", f"extract a {thing} from this image"),
        ),
        "from_map": Phrasings(
            train=(
                f"turn this {thing} into a picture of {{scene}}",
                f"make a picture from this {thing}: {{scene}}",
                f"from the {thing}, draw {{scene}}",
                f"colour this {thing} to show {{scene}}",
                f"convert the {thing} to {{scene}}",
                f"this {thing} is {{scene}}, show the picture",
            ),
            heldout=(
                f"render {{scene}} out of this {thing}",
                f"use the {thing} as a guide for {{scene}}",
            ),
        ),
    }


PHRASINGS: dict[str, dict[str, Phrasings]] = {
    "local": {
        "swap": Phrasings(
            train=(
                "turn the {thing} into a {new}",
                "replace the {thing} with a {new}",
                "swap the {thing} for a {new}",
                "change the {thing} to a {new}",
                "put a {new} where the {thing} is",
                "make the {thing} a {new}",
            ),
            heldout=("let the {thing} become a {new}", "exchange the {thing} for a {new}"),
        ),
        "recolour": Phrasings(
            train=(
                "make the {thing} {colour}",
                "turn the {thing} {colour}",
                "change the colour of the {thing} to {colour}",
                "recolour the {thing} in {colour}",
                "let the {thing} be {colour}",
                "give the {thing} a {colour} colour",
            ),
            heldout=("the {thing} should be {colour}", "I want the {thing} in {colour} instead"),
        ),
        "resize": Phrasings(
            train=(
                "make the {thing} {size}",
                "let the {thing} be {size}",
                "turn the {thing} into a {size} one",
                "change the {thing} to be {size}",
                "resize the {thing} so that it is {size}",
            ),
            heldout=("the {thing} should be {size}", "I want a {size} version of the {thing}"),
        ),
    },
    "remove": {
        "remove": Phrasings(
            train=(
                "remove the {thing}",
                "delete the {thing}",
                "erase the {thing}",
                "take away the {thing}",
                "take the {thing} out of the picture",
                "get rid of the {thing}",
                "clear the {thing} away",
                "leave out the {thing}",
            ),
            heldout=("the {thing} should vanish", "make the {thing} disappear", "drop the {thing}"),
        ),
    },
    "add": {
        "add": Phrasings(
            train=(
                "add a {new} {place}",
                "put a {new} {place}",
                "place a {new} {place}",
                "insert a {new} {place}",
                "draw a {new} {place}",
                "{place}, add a {new}",
                "set a {new} {place}",
                "there should be a {new} {place}",
            ),
            heldout=(
                "include a {new} {place}",
                "let a {new} appear {place}",
                "I want a {new} {place}",
            ),
        ),
    },
    "texture": {
        "pattern": Phrasings(
            train=(
                "make the {thing} {texture}",
                "give the {thing} a {texture} surface",
                "cover the {thing} with a {texture} pattern",
                "change the texture of the {thing} to {texture}",
                "turn the surface of the {thing} {texture}",
                "put a {texture} texture on the {thing}",
                "the surface of the {thing} becomes {texture}",
            ),
            heldout=("wrap the {thing} in a {texture} fabric", "let the {thing} look {texture}"),
        ),
        "plain": Phrasings(
            train=(
                "make the {thing} plain",
                "remove the pattern from the {thing}",
                "give the {thing} a smooth surface",
                "change the texture of the {thing} to plain",
                "take the pattern off the {thing}",
            ),
            heldout=("let the {thing} look plain", "the {thing} without its pattern"),
        ),
    },
    "background": {
        "background": Phrasings(
            train=(
                "replace the background with {background}",
                "change the background to {background}",
                "put {background} behind everything",
                "make the background {background}",
                "set the background to {background}",
                "use {background} as the background",
                "swap the background for {background}",
                "let {background} be behind the figures",
            ),
            heldout=(
                "the backdrop should be {background}",
                "show {background} in the background",
                "I want {background} behind the figures",
            ),
        ),
    },
    "global": {
        "global": Phrasings(
            train=(
                "{command}",
                "please {command}",
                "{command} in the whole scene",
                "change the scene so that {clause}",
                "make it look as if {clause}",
                "show the same scene when {clause}",
                "edit the whole picture so that {clause}",
                "now {clause}",
            ),
            heldout=(
                "imagine that {clause}",
                "what would the scene look like if {clause}?",
                "could you {command}",
            ),
        ),
    },
    "style": {
        "style": Phrasings(
            train=(
                "make it a {style}",
                "turn the picture into a {style}",
                "in the style of a {style}",
                "draw this as a {style}",
                "change the style to a {style}",
                "make it look like a {style}",
                "render the picture as a {style}",
                "give it the style of a {style}",
            ),
            heldout=(
                "redo this as a {style}",
                "I want this as a {style}",
                "apply the look of a {style}",
            ),
        ),
    },
    "text": {
        "add": Phrasings(
            train=(
                "write {word} in {ink} at the {band}",
                "add the word {word} in {ink} letters at the {band}",
                "put the {ink} text {word} at the {band}",
                "at the {band}, write {word} in {ink}",
                "add {ink} text that says {word} at the {band}",
            ),
            heldout=(
                "print {word} in {ink} at the {band}",
                "a {ink} caption {word} should be at the {band}",
            ),
        ),
        "remove": Phrasings(
            train=(
                "remove the word {word}",
                "erase the text {word}",
                "delete the writing {word}",
                "take away the word {word}",
                "the text {word} should go",
            ),
            heldout=("wipe out the word {word}", "get rid of the text {word}"),
        ),
        "replace": Phrasings(
            train=(
                "change the word {word} to {new}",
                "replace the text {word} with {new}",
                "write {new} instead of {word}",
                "the text should say {new}, not {word}",
                "turn the word {word} into {new}",
            ),
            heldout=("swap the writing {word} for {new}", "let the text {word} read {new}"),
        ),
        "recolour": Phrasings(
            train=(
                "make the word {word} {ink}",
                "change the colour of the text {word} to {ink}",
                "turn the letters of {word} {ink}",
                "write the word {word} in {ink} instead",
            ),
            heldout=("the text {word} should be {ink}", "let the word {word} be {ink}"),
        ),
    },
    "detect": {
        "detect": Phrasings(
            train=(
                "draw a {mark} box around the {thing}",
                "detect the {thing} with a {mark} rectangle",
                "put a {mark} bounding box around the {thing}",
                "mark the {thing} with a {mark} box",
                "find the {thing} and frame it in {mark}",
                "where is the {thing}? draw a {mark} box",
                "surround the {thing} with a {mark} rectangle",
                "show the {thing} in a {mark} frame",
            ),
            heldout=(
                "locate the {thing} using a {mark} rectangle",
                "outline the {thing} with a {mark} bounding box",
                "a {mark} frame should enclose the {thing}",
            ),
        ),
    },
    "segment": {
        "segment": Phrasings(
            train=(
                "segment the {thing} in {mark}",
                "mark every pixel of the {thing} {mark}",
                "paint a {mark} mask over the {thing}",
                "cover the {thing} with a {mark} mask",
                "mark the {thing} in {mark}",
                "highlight the {thing} with a {mark} mask",
                "segment the {thing}, use {mark}",
                "show the mask of the {thing} in {mark}",
            ),
            heldout=(
                "label the pixels of the {thing} with {mark}",
                "fill the area of the {thing} with {mark}",
                "a {mark} mask should cover the {thing}",
            ),
        ),
    },
    "color": {
        "color": Phrasings(
            train=(
                "{filter} the picture",
                "{filter} this image",
                "please {filter} the photo",
                "{filter} it",
                "I need you to {filter} the picture",
                "{filter} the image a lot",
                "{filter} the entire image",
                "use a filter: {filter}",
            ),
            heldout=(
                "could you {filter} this photo",
                "now {filter} the image",
                "process the photo: {filter} it",
            ),
        ),
    },
    "sketch": _maps("line sketch", "draw"),
    "depth": _maps("depth map", "compute"),
    "normal": _maps("normal map", "compute"),
    "pose": _maps("pose skeleton", "draw"),
    "segmap": _maps("segmentation map", "compute"),
}
