"""Parse errors in two lines, what was given and what is expected, for jsonargparse's messages of many."""

import re
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from inspect import isabstract, isclass
from typing import Any, get_args

from mambaeye.command_line.help import FULL_HELP
from mambaeye.errors import InputError
from mambaeye.saved_values import shown

TYPES = {
    "<class 'int'>": "an integer",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'tuple'>": "a list such as [1,2]",
    "<class 'list'>": "a list such as [1,2]",
    "<class 'dict'>": "a mapping such as {name: value}",
    "<class 'NoneType'>": "null",
}
KEY = re.compile(r'[Pp]arser key "([^"]+)"')
UNKNOWN = re.compile(r"[Oo]ption '([^']+)'")
CLASS = re.compile(r"dot import path string: (\S+)|given class_path '([^']+)'")
EXPECTED = re.compile(r"Expected an? (typing\.Literal\[[^\n]*?\]|<class '\w+'>)")
GIVEN = re.compile(r"(?:Got|Given) value: (.*)", re.DOTALL)
MANY = 24  # classes, too many to list
KINDS = {"model.encoder": "encoder", "model.policy": "policy"}


def explained(message: str, parser: ArgumentParser) -> tuple[str, str]:
    """Return what was given and what is expected, for a message of jsonargparse's.

    Raises:
        InputError: a class is meant that there is not.
    """
    everything = f"python train.py {parser.prog.split()[-1]} {FULL_HELP} lists all"
    if words := re.match(r"unrecognized arguments: (\S+)", message):
        flag = words[1].partition("=")[0]
        return (
            unknown(flag, parser, everything) if flag.startswith("-") else (f"{flag!r} is behind no flag", everything)
        )
    if no_value := re.match(r"argument (\S+): expected (.*)", message):
        return f"{no_value[1]} has no value", f"{no_value[2].replace('argument', 'value')} after it"
    keys = KEY.findall(message)
    key = ".".join(dict.fromkeys(keys))
    if found := UNKNOWN.search(message):
        return unknown(f"--{key}.{found[1]}" if key else f"--{found[1]}", parser, everything)
    if key == "config":
        return f"--config: {message.partition(': ')[2]}", "a YAML file"
    if "Unable to load config" in message and key:
        return f"--{key} is not the name of a YAML file", f"one with its settings, or --{key}.NAME VALUE for each"
    if nested := re.search(r"NestedArg\(key='(\w+)'", message):
        return f"--{key}.{nested[1]} needs its class first", f"--{key} CLASS before it"
    types = [TYPES.get(kind, choices(kind)) for kind in dict.fromkeys(EXPECTED.findall(message))]
    classes = [name for pair in CLASS.findall(message) for name in pair if name]
    if classes and key:
        refuse_class(key, classes[0], message, parser)
    value = GIVEN.search(message)
    if key and value and types:
        return f"--{key} is {shown(value[1].strip())}", " or ".join(dict.fromkeys(types))
    return shown(" ".join(message.split())), everything


def unknown(flag: str, parser: ArgumentParser, everything: str) -> tuple[str, str]:
    """Return both lines for a name that no argument has."""
    near = get_close_matches(flag, flags(parser), n=1)
    given = f"{flag} is no argument of {parser.prog.split()[-1]}"
    return given, f"did you mean {near[0]}? {everything}" if near else everything


def flags(parser: ArgumentParser) -> list[str]:
    """Return all flags of a parser, and those of the encoder's arguments."""
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    for action in parser._actions:
        if action.dest in KINDS:
            for kind in subclasses(bases(action)):
                inner = type(parser)()
                inner.add_class_arguments(kind, action.dest)  # type: ignore[attr-defined]  # it is jsonargparse's
                known += [flag for one in inner._actions for flag in one.option_strings if action.dest in flag]
    return known


def refuse_class(key: str, name: str, message: str, parser: ArgumentParser) -> None:
    """Refuse a class that there is not, and name those that there are.

    Raises:
        InputError: always, unless the class is there and something else is wrong.
    """
    if reason := re.search(r"No module named [^\n]*|module '[^\n]* has no attribute [^\n]*", message):
        raise InputError(f"--{key} is {name}, which cannot be imported ({reason[0]})")
    if "dot import path" not in message:
        return
    what = KINDS.get(key, f"class for {key}")
    (action,) = (action for action in parser._actions if action.dest == key)
    classes = [kind for kind in subclasses(bases(action)) if not isabstract(kind)]
    known = sorted({kind.__name__ for kind in classes})
    near = get_close_matches(name, known, n=1)
    choice = f"did you mean {near[0]}, or " if near else f"choose one of {', '.join(known)}, or "
    raise InputError(f"no {what} is called {name!r}: {choice if near or len(known) < MANY else ''}give an import path")


def bases(action: Any) -> Iterator[type]:
    """Yield the classes that an argument's type names."""
    pending = [getattr(action, "_typehint", None)]
    while pending:
        hint = pending.pop()
        pending += get_args(hint)
        if isclass(hint) and hint.__module__ != "builtins" and not get_args(hint):
            yield hint


def subclasses(classes: Iterable[type]) -> Iterator[type]:
    """Yield all classes below these, whoever defined them."""
    for kind in classes:
        found: type
        for found in kind.__subclasses__():
            yield found
            yield from subclasses([found])


def choices(kind: str) -> str:
    """Return a Literal's choices as one reads them."""
    return "one of " + kind.removeprefix("typing.Literal[").removesuffix("]").replace("'", "")
