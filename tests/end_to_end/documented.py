"""The commands that README and docs show: found in their text, split as a shell would."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emu_edit.cli.main import VERBS
from emu_edit.runs.options import configs_folder

ROOT = configs_folder().parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "configs" / "train").glob("*.yaml"))
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
IN_A_RECIPE = re.compile(r"^#   (emu-edit .*)$", re.MULTILINE)
# what a shell's line is made of besides commands: variables, `case` and its branches
SYNTAX = re.compile(r"case .* in|esac|\S+(?: \| \S+)*\)(?= )|;;|^\w+=\$\(|\)$")
ASSIGNED = re.compile(r"\w+=\S*")
# what begins a command that lies within a sentence; `MODEL` and the like stand for something there
BEGINNINGS = {"emu-edit", "python", "pip", "wandb", "hf", "WANDB_MODE=offline"}
NO_COMMAND = "shards stream remote encoded checks convert evaluation_sets world"  # names of folders
# what stands for something in the text
PLACEHOLDERS = {"$RUN": "runs/of-a-job", "$SLURM_NNODES": "1", "KIND": "folder"}


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it.

    Attributes:
        page: the file's name.
        words: the command, without variables set before it and redirections.
        output: the file that standard output goes to, "" for none.
        is_inline: whether it lies within a sentence.
    """

    page: str
    words: tuple[str, ...]
    output: str = ""
    is_inline: bool = False

    @property
    def arguments(self) -> tuple[str, ...] | None:
        """What our program is called with; None for other programs, ours may be started by them."""
        for number, word in enumerate(self.words):
            is_module = self.words[number - 1 : number] in {("-m",), ("--",)} and word == "emu_edit"
            if is_module or word.rpartition("/")[2] == "emu-edit":
                return self.words[number + 1 :]
        return None

    def __str__(self) -> str:
        """Name it in a test's report."""
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, *languages: str) -> list[str]:
    """Return what stands in the fenced blocks of some languages."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [block for _, language, block in found if language in languages]


@cache
def commands(page: Path) -> tuple[Shown, ...]:
    """Return the commands of a page's blocks in their order (of a recipe: of its first lines)."""
    if page.suffix == ".yaml":
        scripts = IN_A_RECIPE.findall(page.read_text(encoding="utf-8"))
    else:
        scripts = blocks(page, "sh", "bash", "console")
    return tuple(shown for script in scripts for shown in split(page.name, script))


@cache
def inline_commands(page: Path) -> tuple[Shown, ...]:
    """Return the commands within a page's sentences, also those that leave `emu-edit` out."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = []
    for span in INLINE.findall(text):
        first, *rest = span.split() or [""]
        if first in BEGINNINGS and rest and rest != ["…"]:
            found += split(page.name, span, is_inline=True)
        elif first in VERBS and rest and " ".join(span.split()) != NO_COMMAND:
            found += split(page.name, f"emu-edit {span}", is_inline=True)
    return tuple(found)


def split(page: str, script: str, *, is_inline: bool = False) -> Iterator[Shown]:
    """Yield the commands of a script: comments left out, lines joined, `&&` taken apart."""
    script = script.replace("\\\n", " ")
    for line in [" ".join(script.split())] if is_inline else script.splitlines():
        lexer = shlex.shlex(SYNTAX.sub("", line), posix=True, punctuation_chars="&>")
        lexer.whitespace_split = True
        words = [*lexer, "&&"]
        while words:
            end = words.index("&&")
            if shown := _command(page, words[:end], is_inline=is_inline):
                yield shown
            words = words[end + 1 :]


def _command(page: str, words: Sequence[str], *, is_inline: bool) -> Shown | None:
    own = list(words)
    while own and ASSIGNED.fullmatch(own[0]):
        del own[0]
    output = own[-1] if ">" in own else ""
    own = own[: own.index(">")] if output else own
    return Shown(page, tuple(own), output, is_inline) if own else None


def files_of(page: Path) -> Iterator[tuple[str, str]]:
    """Yield name and content of the configs that a page tells to write: `# NAME.yaml` on top."""
    for block in blocks(page, "yaml"):
        if named := re.match(r" *# (\w+\.yaml)\b", block):
            yield named[1], block
