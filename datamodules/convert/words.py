"""A guess at an instruction's task by its words, for public sets that name no tasks.

An ordered list of patterns, the first that is found decides. The verb comes first, because "remove
the man in the background" removes; what an edit is made of comes last, because "make it" can be
anything. Where nothing fits there is no task, rather than a wrong one. The rules are ours; that
they are right for the sentences in the tests is all that is claimed.
"""

import re

_MEDIA = r"painting|drawing|sketch|cartoon|comic|anime|manga|illustration|watercolou?r|mosaic|print"
_STUFF = r"wood|wooden|metal|gold|golden|silver|glass|marble|stone|brick|leather|fur|lego|ice|paper"
_TIMES = r"night|day(time)?|evening|morning|sunset|sunrise|dawn|dusk|noon"
_SEASONS = r"winter|summer|autumn|fall|spring"
_WEATHER = r"rain(y|ing)?|snow(y|ing)?|storm(y)?|fog(gy)?|mist(y)?|sunny|cloudy|overcast|weather"
_QUOTED = r"(?<!\w)['\"][^'\"]{2,}['\"](?!\w)"  # not what stands between two apostrophes
_TONE = r"sharp(en|er)?|blurr?(y|ier)?|contrast|brightness|brighter|darker|saturat\w+|exposure"

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
    """Return the task that the words speak of, None if no rule fits."""
    text = _COURTESY.sub("", instruction.strip().lower())
    return next((task for pattern, task in _COMPILED if pattern.search(text)), None)
