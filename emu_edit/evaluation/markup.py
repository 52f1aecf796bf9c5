"""HTML from nested calls, every text escaped unless it was made here.

tag("p", {"class": "note"}, "a < b")   →   <p class="note">a &lt; b</p>
"""

import html
from collections.abc import Iterable, Mapping

EMPTY = frozenset({"br", "img", "input", "link", "meta"})  # elements that have no end tag


class Markup(str):
    """A text that is HTML already: goes into a page as it is."""

    __slots__ = ()


def tag(name: str, attributes: Mapping[str, str] | None, *children: str) -> Markup:
    """Return an element; children and attributes are escaped, but children that are Markup."""
    given = "".join(f' {key}="{html.escape(value)}"' for key, value in (attributes or {}).items())
    if name in EMPTY:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Return the parts one after the other, those escaped that are not Markup."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(part) for part in parts)
    )
