"""Values out of a file, held against the types that they should have: numbers, choices and names, but no free text."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")  # of a class, a scan, a choice; neither a command nor a path
DEEPEST = 8  # containers in containers
SHOWN = 200  # letters of a text that a message quotes


def misfits(name: str, value: object, hint: Any, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield what does not have its type, with its full name.

    A float may be an integer, a tuple a list, a dataclass a dictionary of some of its fields, and a str or the key of a
    dictionary must be a name: words with dots between them.

    Args:
        name: of the argument.
        value: as it was in the file.
        hint: its type: int, float, bool, str, None, Literal, a union, tuple, dataclass or dictionary by name of these;
            or Any, for numbers and names in lists and dictionaries.
        depth: containers around it.
    """
    origin, options = get_origin(hint), get_args(hint)
    if depth > DEEPEST:
        yield name, value
    elif origin in (Union, UnionType):
        found = [list(misfits(name, value, option, depth)) for option in options]
        yield from [] if [] in found else max(found, key=lambda wrong: len(wrong[0][0]))  # the innermost
    elif isinstance(value, dict) and (hint is Any or origin is dict or is_dataclass(hint)):
        each_type = options[1] if origin is dict else Any
        types = types_of(cast(type, hint)) if is_dataclass(hint) else {key: each_type for key in value if is_name(key)}
        for key, inner in value.items():
            if key in types:
                yield from misfits(f"{name}.{key}", inner, types[key], depth + 1)
            else:
                yield f"{name}.{shown(key)}", inner
    elif isinstance(value, list | tuple) and (hint is Any or origin is tuple):
        each = [Any, ...] if hint is Any else options
        each = [each[0]] * len(value) if each[-1] is ... else each
        if len(each) != len(value) or any(
            any(misfits(name, *pair, depth + 1)) for pair in zip(value, each, strict=True)
        ):
            yield name, value
    elif not fits(value, hint):
        yield name, value


def fits(value: object, hint: Any) -> bool:
    """Tell whether a value without parts has its type; True is no integer."""
    if get_origin(hint) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if hint is Any:
        return type(value) in (int, float, bool, NoneType) or is_name(value)
    if hint is float:
        return type(value) in (int, float)
    return is_name(value) if hint is str else hint in (int, bool, NoneType) and type(value) is hint


def is_name(value: object) -> bool:
    """Tell whether a value is a word, or words with dots between them."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


@cache
def types_of(group: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, or of the arguments of a class's constructor."""
    return get_type_hints(group if is_dataclass(group) else vars(group)["__init__"])


def shown(value: object) -> str:
    """Return how a message quotes a value out of a file: on one line, without control characters, and not for ever."""
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
