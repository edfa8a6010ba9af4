"""The tests remember of parsers what a search finds."""

import json
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from jsonargparse import ArgumentParser, _util


def test_an_argument_is_found_as_soon_as_it_is_there() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--first.size", type=int, default=1)
    for _ in range(2):
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_args(["--second.size=2"])
    parser.add_argument("--second.size", type=int)
    assert parser.parse_args(["--second.size=2"]).second.size == 2
    with pytest.raises(jsonargparse.ArgumentError, match="size"):
        parser.parse_args(["--second.size=two"])


def test_parsers_have_arguments_of_their_own() -> None:
    for kind, given, expected in ((int, "3", 3), (str, "3", "3")):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--size", type=kind)
        both = ArgumentParser(exit_on_error=False)
        both.add_subcommands().add_subcommand("fit", parser)
        assert parser.parse_args([f"--size={given}"]).size == expected
        assert both.parse_args(["fit", f"--size={given}"]).fit.size == expected


@pytest.mark.parametrize(
    ("asked", "path"),
    [(Path, "pathlib.Path"), (ArgumentParser, "jsonargparse.ArgumentParser"), (json.dumps, "json.dumps")],
)
def test_a_class_is_named_as_ever_and_so_is_what_is_none(asked: Any, path: str) -> None:
    assert [_util.get_import_path(asked) for _ in range(2)] == [path, path]


def test_classes_of_one_name_are_told_apart() -> None:
    ours, others = (type("Same", (), {"__module__": module}) for module in (__name__, "json"))
    for _ in range(2):
        assert _util.get_import_path(ours) == f"{__name__}.Same"
        assert _util.get_import_path(others) == "json.Same"
