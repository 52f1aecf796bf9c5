"""Words jsonargparse's many-line complaints about a config or a flag as one line with a suggestion.

jsonargparse lists every type it tried; what a person needs is the key, the innermost reason, and
the name they probably meant.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, get_args

from emu_edit.errors import closest

UNKNOWN_KEY = re.compile(r"(?:accept option|Option) '([^']+)'|unrecognized arguments: --([^\s=]+)")
CLASS_PATH = re.compile(r"given class_path '([^']+)'")
TRIED = ("Does not validate", "- Does not validate", "Subtypes:", "Errors:", "Given value type")
PARSER_KEY = re.compile(r'Parser key "([^"]+)"')


def one_line(message: str, known: Iterable[str]) -> str:
    """Return the key, the innermost reason and the nearest known name in one line.

    Args:
        message: what jsonargparse said.
        known: dotted names of all options of the command.
    """
    keys = ".".join(dict.fromkeys(PARSER_KEY.findall(message)))
    place = f"{keys}: " if keys else ""
    hint = _hint(message, known)
    return f"{place}{_reason(message.splitlines())}.{hint} See --help-all or --print_config"


def _reason(lines: list[str]) -> str:
    """Return the innermost complaint, without the list of types that were tried."""
    where = ""
    problems = [i for i, line in enumerate(lines) if "Problem with given class_path" in line]
    if problems:
        innermost = problems[-1]
        where = " ".join(f"(in {path})" for path in CLASS_PATH.findall(lines[innermost]))
        lines = list(_indented_below(lines[innermost], lines[innermost + 1 :]))
    told = [_plain(line) for line in lines if not line.strip().startswith(TRIED)]
    return " ".join([", ".join(dict.fromkeys(filter(None, told))), where]).strip()


def _plain(line: str) -> str:
    """Strip what only repeats: bullets, the key, and how Python writes a class."""
    line = PARSER_KEY.sub("", line).strip().strip("-: ")
    line = re.sub(r"<(?:class|enum) '([\w.]+)'>", r"\1", line)
    return "" if "NoneType" in line else line.rstrip(".")


def _indented_below(head: str, lines: list[str]) -> Iterable[str]:
    """Yield the lines that belong to `head`."""
    for line in lines:
        if line.strip() and _indent(line) <= _indent(head):
            return
        yield line


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _hint(message: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to an unknown key."""
    unknown = UNKNOWN_KEY.search(message)
    if unknown is None:
        return ""
    name = (unknown[1] or unknown[2]).rpartition(".")[2]
    last_parts = {option.rpartition(".")[2] for option in known}
    classes = [_parameters(path) for path in CLASS_PATH.findall(message)]
    return closest(name, sorted(last_parts.union(*classes)))


def _parameters(class_path: str) -> set[str]:
    """Return the names a class takes, and those of the records among its parameters."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):  # a misspelt class has no names to suggest
        return set()
    names = set()
    for parameter in inspect.signature(found).parameters.values():
        names.add(parameter.name)
        names.update(_fields(parameter.annotation))
    return names


def _fields(annotation: Any) -> set[str]:
    records = [kind for kind in (annotation, *get_args(annotation)) if is_dataclass(kind)]
    return {field.name for record in records for field in fields(record)}
