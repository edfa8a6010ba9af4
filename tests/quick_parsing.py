"""Look-ups of jsonargparse, remembered: a command line is parsed some hundreds of times by the tests.

Nothing is parsed otherwise: what is remembered is read from sources, or found in a list that has not changed since.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import docstring_parser
from jsonargparse import _common, _core, _util

try:
    from jsonargparse import _subcommands
except ImportError:  # a version that looks arguments up elsewhere
    _subcommands = None


def once_a_class(function: Callable[[Any], Any]) -> None:
    """Let a function answer once for each class, wherever jsonargparse has its name; for all else it is called."""
    of_class = cache(function)

    def answer(asked: Any) -> Any:
        return of_class(asked) if isinstance(asked, type) else function(asked)

    for name, module in list(sys.modules.items()):
        if name.startswith("jsonargparse.") and vars(module).get(function.__name__) is function:
            setattr(module, function.__name__, answer)


def remember() -> None:
    """Let docstrings be parsed once a process, and an argument be searched once among the arguments of a parser."""
    docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)
    for module, name in ((_util, "get_import_path"), (_common, "get_unaliased_type")):
        if hasattr(module, name):
            once_a_class(getattr(module, name))
    if not hasattr(_subcommands, "find_action_and_subcommand"):
        return
    search = _subcommands.find_action_and_subcommand

    def find(parser: Any, dest: str, exclude: Any = None) -> Any:
        """The search's own answer; of a parser with subcommands, theirs may change, and nothing is remembered."""
        if getattr(parser, "_subcommands_action", None):
            return search(parser, dest, exclude)
        actions, found = vars(parser).get("_remembered", (None, {}))
        if actions != parser._actions:
            found = {}
            vars(parser)["_remembered"] = list(parser._actions), found
        if (dest, exclude) not in found:
            found[dest, exclude] = search(parser, dest, exclude)
        return found[dest, exclude]

    _subcommands.find_action_and_subcommand = find
    if hasattr(_core, "find_action_and_subcommand"):  # imported by name
        _core.find_action_and_subcommand = find
