"""What an instruction may look like before any tokenizer sees it.

Text of strangers reaches the model through data sets, the command line and a server. The same few
rules hold for all of them: one line of visible text in Unicode's composed form, of bounded length,
because tokenizing time grows with the characters that come in, not with the tokens that are kept.
"""

import unicodedata

from emu_edit.errors import InputError

# 4 MB of text took a CLIP tokenizer 9 s, truncation included; no instruction needs more than this
MAX_CHARACTERS = 2000

EXAMPLES = {
    "instruction": "say what to change, e.g. 'make the sky red'",
    "caption": "say what to draw, e.g. 'a red circle on a beach'",
}
ARROW = "=>"  # between an instruction and the caption of its result
_SPACES = "\t\n\r"
_INVISIBLE = {"Cf", "Zs", "Mn", "Cn", "Co"}


def clean_instruction(text: str, where: str = "", *, what: str = "instruction") -> str:
    """Return `text` as one line in NFC, each run of blanks and line ends made one space.

    `where` names the place and `what` the text in messages, e.g. "instructions.jsonl:12" and
    "caption".

    Raises:
        InputError: if nothing visible is left, if more than `MAX_CHARACTERS` are, or if it holds
            control characters or lone surrogates (bytes that were not valid UTF-8).
    """
    place = f"{where}: the {what}" if where else f"the {what}"
    # length first: normalizing a long run of combining marks takes quadratic time
    text = text.strip(f" {_SPACES}")
    if len(text) > 2 * MAX_CHARACTERS:
        raise _too_long(place, len(text))
    for position, character in enumerate(text):
        kind = unicodedata.category(character)
        if (kind == "Cc" and character not in _SPACES) or kind == "Cs":
            raise InputError(
                f"{place} has the character U+{ord(character):04X} at position "
                f"{position}, which no text needs; remove it and save the file as UTF-8"
            )
    cleaned = unicodedata.normalize("NFC", " ".join(text.split()))
    if all(unicodedata.category(character) in _INVISIBLE for character in cleaned):
        hint = EXAMPLES.get(what, "leave it out")
        raise InputError(f"{place} is empty; {hint}")
    if len(cleaned) > MAX_CHARACTERS:
        raise _too_long(place, len(cleaned))
    return cleaned


def with_caption(instruction: str, caption: str) -> str:
    """Say what to change and what comes out in one text: "make it snow => a beach in snow"."""
    return f"{instruction} {ARROW} {caption}" if caption else instruction


def parted(text: str) -> tuple[str, str]:
    """Return the instruction of a text, and the caption after its arrow; "" where it has none."""
    instruction, _, caption = text.partition(ARROW)
    return instruction.strip(), caption.strip()


def _too_long(place: str, length: int) -> InputError:
    limit = f"at most {MAX_CHARACTERS} are allowed; shorten it"
    return InputError(f"{place} has {length} characters, {limit}")
