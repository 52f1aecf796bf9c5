"""Which of our tasks a pair teaches: by the data's own name, by its words, or by one name for all.

Public sets name tasks in their own way or not at all. A converter's table says what its names are
in ours; a user can overrule a name (`--map RAW=TASK`), give a task to the pairs that name none
(`--task`), or let their words decide (`--task-by-words`). A name that no table knows stops the run
before anything is written: a whole kind of edit would be lost, or taught as something else.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.convert.pair import Converter, RawItem, Reason, RefusedPairError, SkippedPair
from emu_edit.errors import InputError, closest
from emu_edit.tasks import SIXTEEN, TaskTable
from emu_edit.terminal import plural

NO_TASK = "none"  # in --map: leave these pairs out
_NAMED = 20  # of the unknown names in a message


@dataclass(frozen=True)
class TaskNaming:
    """What the user says about tasks.

    Attributes:
        default: the task of pairs that name none.
        by_words: let an instruction's words decide first where no task is named.
        given: task names of the data in ours, before the converter's table; None leaves out.
        known: our tasks.
    """

    default: str | None = None
    by_words: bool = False
    given: Mapping[str, str | None] = field(default_factory=dict)
    known: TaskTable = SIXTEEN

    def __post_init__(self) -> None:
        """Refuse names that are none of ours."""
        for name in (self.default, *self.given.values()):
            if name is not None:
                self.known.index(name)


class Namer:
    """Names the task of each pair of one converter."""

    def __init__(self, naming: TaskNaming, converter: Converter) -> None:
        names = converter.tasks
        if names is None:
            names = {name: name for name in naming.known.names}
        self._naming = naming
        self._of = {_squash(raw): task for raw, task in {**names, **naming.given}.items()}

    def knows(self, raw: str) -> bool:
        """Tell whether the data's name is in the table; no name is known as such."""
        return not raw or _squash(raw) in self._of

    def needs_name(self, pair: RawItem) -> bool:
        """Tell whether nothing says what the pair's task is."""
        unnamed = not pair.raw_task and pair.task is None
        return unnamed and self._naming.default is None and not self._naming.by_words

    def task_of(self, pair: RawItem) -> str:
        """Return the task of a pair; refuse a pair that has none of ours."""
        task = pair.task
        if task is None and pair.raw_task:
            task = self._of[_squash(pair.raw_task)]
            if task is None:
                detail = f"{pair.name}: {pair.raw_task!r} is none of ours; "
                detail += f"to keep such pairs: --map '{pair.raw_task}=TASK'"
                raise RefusedPairError(Reason.no_task, detail)
        if task is None and self._naming.by_words and isinstance(pair.instruction, str):
            task = task_of_words(pair.instruction)
        if task is None:
            task = self._naming.default
        if task is None:
            detail = f"{pair.name}: no rule fits the words {str(pair.instruction)[:80]!r}; "
            detail += "to keep such pairs: --task NAME"
            raise RefusedPairError(Reason.no_task, detail)
        return task


@dataclass(frozen=True)
class Survey:
    """A listing in numbers: entries, pairs among them, their scores, whether any has a group."""

    listed: int
    pairs: int
    scores: frozenset[str]
    has_groups: bool


def survey(
    listing: Iterable[RawItem | SkippedPair], namer: Namer, known: TaskTable, path: Path
) -> Survey:
    """Count what is listed.

    Raises:
        InputError: if a pair has no task, or one that no table knows: all such names are listed.
    """
    listed = pairs = unnamed = 0
    has_groups = False
    first = ""
    unknown = Counter[str]()
    scores: set[str] = set()
    for item in listing:
        listed += 1
        if isinstance(item, SkippedPair):
            continue
        pairs += 1
        scores.update(item.scores)
        has_groups |= bool(item.group)
        if namer.needs_name(item):
            unnamed, first = unnamed + 1, first or item.name
        elif item.task is None and not namer.knows(item.raw_task):
            unknown[item.raw_task] += 1
    if unknown:
        raise InputError(f"{path}: {_unknown(unknown, known)}")
    if unnamed:
        raise InputError(
            f"{first}: names no task ({unnamed} of {pairs} pairs name none); give one for them: "
            "--task NAME, or let their words decide: --task-by-words"
        )
    return Survey(listed, pairs, frozenset(scores), has_groups)


def _unknown(names: Counter[str], known: TaskTable) -> str:
    """List the names that no table has, the most frequent first."""
    found = [
        f"unknown task {name!r} ({plural(count, 'pair')}).{closest(name, list(known.names))}"
        for name, count in names.most_common(_NAMED)
    ]
    more = f" and {len(names) - _NAMED} more;" if len(names) > _NAMED else ""
    return (
        f"{' '.join(found)}{more} known tasks: {', '.join(known.names)}; say what each is: "
        f"--map NAME=TASK, or leave its pairs out: --map NAME={NO_TASK}"
    )


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower()) or name


_MEDIA = r"painting|drawing|sketch|cartoon|comic|anime|manga|illustration|watercolou?r|mosaic|print"
_STUFF = r"wood|wooden|metal|gold|golden|silver|glass|marble|stone|brick|leather|fur|lego|ice|paper"
_TIMES = r"night|day(time)?|evening|morning|sunset|sunrise|dawn|dusk|noon"
_SEASONS = r"winter|summer|autumn|fall|spring"
_WEATHER = r"rain(y|ing)?|snow(y|ing)?|storm(y)?|fog(gy)?|mist(y)?|sunny|cloudy|overcast|weather"
_QUOTED = r"(?<!\w)['\"][^'\"]{2,}['\"](?!\w)"  # not what stands between two apostrophes
_TONE = r"sharp(en|er)?|blurr?(y|ier)?|contrast|brightness|brighter|darker|saturat\w+|exposure"

# The first pattern that is found decides. The verb comes first, because "remove the man in the
# background" removes; what an edit is made of comes last, because "make it" can be anything. The
# rules are ours; that they are right for the sentences in the tests is all that is claimed.
_RULES: tuple[tuple[str, str], ...] = (
    (r"\b(depth map|map of depth)\b", "depth"),
    (r"\bnormal map\b", "normal"),
    (r"\bsegmentation (map|mask)\b", "segmap"),
    (r"\b(bounding box|detect)\b", "detect"),
    (r"^segment\b", "segment"),
    (r"\b(skeleton|key ?points|pose map)\b", "pose"),
    (rf"\b(text|caption|letters?|the words?|sign (to )?(say|read)s?)\b|{_QUOTED}", "text"),
    (r"^(remove|erase|delete) (the |its )?background\b", "background"),
    (r"^(remove|erase|delete|eliminate|get rid of|take (away|out|off)|clear)\b", "remove"),
    (r"\b(background|backdrop)\b", "background"),
    (rf"(?<!hair )\bstyle\b|\b(as|into|like|in) (an? |the )?([\w-]+ ){{0,2}}({_MEDIA})\b", "style"),
    (rf"\b(made|built) (out )?of\b|\btexture\b|\binto ({_STUFF})$", "texture"),
    (
        r"^(add|insert|put|place|include|attach)\b|^give (him|her|them|it|the \w+) (an?|some)\b",
        "add",
    ),
    (
        rf"\b({_TONE}|black[- ]and[- ]white|gr[ae]yscale|colou?ri[sz]e|de(noise|blur|haze))\b",
        "color",
    ),
    (rf"\b(at|into|it|be|is|a|in|during|the) ({_TIMES}|{_SEASONS})\b|\b({_WEATHER})\b", "global"),
    (r"^(let|have) (there )?be\b", "add"),
    (r"^(replace|swap|change|turn|make|transform|convert|recolou?r|dye|paint)\b", "local"),
)
_COMPILED = tuple((re.compile(pattern), task) for pattern, task in _RULES)
_COURTESY = re.compile(r"^(please|can you|could you|now|then|,|\s)+")


def task_of_words(instruction: str) -> str | None:
    """Guess the task from the words; None rather than a wrong one if no rule fits."""
    text = _COURTESY.sub("", instruction.strip().lower())
    return next((task for pattern, task in _COMPILED if pattern.search(text)), None)
