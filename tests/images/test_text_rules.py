"""The rules for instructions."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_edit.errors import InputError
from emu_edit.text_rules import MAX_CHARACTERS, clean_instruction


def test_an_ordinary_instruction_is_unchanged():
    assert clean_instruction("Make the sky red, please!") == "Make the sky red, please!"


@pytest.mark.parametrize(
    "text", ["  make it\nred ", "make\t it \r\nred\n", "\u3000make it\u00a0red", "make it red"]
)
def test_blanks_and_line_ends_become_single_spaces(text):
    assert clean_instruction(text) == "make it red"


def test_composed_and_decomposed_letters_are_one_text():
    assert clean_instruction("cafe\u0301") == clean_instruction("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("text", ["把天空变红", "اجعل السماء حمراء", "añade 👩‍🚀", "नीला करो"])
def test_every_language_and_joined_emoji_pass(text):
    assert clean_instruction(text) == text


@pytest.mark.parametrize("text", ["", "   \n", "\u200b\u200d", "\u00a0", "\ufeff"])
def test_a_text_without_anything_visible_is_refused(text):
    with pytest.raises(InputError, match=r"a.txt: the instruction is empty; say what to change"):
        clean_instruction(text, "a.txt")


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x85", "\x0b"])
def test_control_characters_are_refused_with_their_place(character):
    wanted = rf"the instruction has the character U\+00{ord(character):02X} at position 3"
    with pytest.raises(InputError, match=wanted):
        clean_instruction(f"red{character}sky")


def test_bytes_that_were_not_utf8_are_refused():
    text = b"caf\xe9".decode("utf-8", "surrogateescape")  # what sys.argv holds for such bytes
    with pytest.raises(InputError, match=r"U\+DCE9 at position 3.* save the file as UTF-8"):
        clean_instruction(text)


def test_the_longest_allowed_text_passes_and_one_more_is_refused():
    assert len(clean_instruction("x" * MAX_CHARACTERS + "  ")) == MAX_CHARACTERS
    with pytest.raises(InputError, match="has 2001 characters, at most 2000 are allowed; shorten"):
        clean_instruction("x" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize("text", ["x" * 4_000_000, "a" + "\u0315\u0300" * 2_000_000])
def test_a_giant_text_is_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(InputError, match=r"has \d{7} characters"):
        clean_instruction(text)
    assert time.process_time() - start < 1  # a tokenizer needs 9 s for as much


def test_another_text_is_named_in_the_message():
    with pytest.raises(InputError, match=r"b.jsonl:3: the caption is empty"):
        clean_instruction("", "b.jsonl:3", what="caption")


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_is_cleaned_or_refused_and_cleaning_twice_changes_nothing(text):
    try:
        cleaned = clean_instruction(text)
    except InputError:
        return
    assert clean_instruction(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert 0 < len(cleaned) <= MAX_CHARACTERS
