"""Tasks by words: sentences as they stand in the public sets."""

import pytest

from datamodules.convert.naming import task_of_words

SENTENCES = {
    "remove": [
        "Remove the dog.",
        "please get rid of the man in the background",
        "take out the cup",
    ],
    "add": [
        "Add a hat to the cat",
        "put a boat on the lake",
        "let there be a rainbow",
        "insert a tree",
    ],
    "background": ["change the background to a beach", "Make the backdrop a forest"],
    "style": ["as an oil painting", "turn it into a watercolor painting", "in the style of Monet"],
    "text": ["change the text to 'OPEN'", 'Make the sign say "SALE"', "remove the caption"],
    "texture": ["make the chair made of wood", "turn the ball into marble"],
    "color": ["increase the contrast", "make it black and white", "colorize the photo", "blur it"],
    "global": [
        "make it winter",
        "What would it look like at night?",
        "make it snowy",
        "make it sunset",
    ],
    "local": [
        "Replace the dog with a cat",
        "turn the cat into a dog",
        "make the car red",
        "change her hair style",
        "make the cat's and the dog's eyes blue",
    ],
    "depth": ["generate the depth map of the image"],
    "segment": ["Segment the cat"],
    "detect": ["Detect the dog"],
}


@pytest.mark.parametrize(
    ("sentence", "task"), [(text, task) for task, texts in SENTENCES.items() for text in texts]
)
def test_a_sentence_has_its_task(sentence: str, task: str) -> None:
    assert task_of_words(sentence) == task


@pytest.mark.parametrize("sentence", ["", "what a nice picture", "xyz", "it is a cat"])
def test_words_that_fit_no_rule_have_no_task(sentence: str) -> None:
    assert task_of_words(sentence) is None
