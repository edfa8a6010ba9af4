"""What the tests remember of parsers is what a search finds."""

import jsonargparse
import pytest
from jsonargparse import ArgumentParser


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
