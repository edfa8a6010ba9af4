"""python -m callbacks.page RUN [RUN ...]: a page of one run, or of several side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mambaeye.errors import InputError


def main(args: Sequence[str] | None = None) -> None:
    """Write the page; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.page", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run directory of fit or validate")
    parser.add_argument("-o", "--output", type=Path, help="file to write (default: report.html in the first run)")
    given = parser.parse_args(args)
    output = given.output or given.runs[0] / "report.html"
    try:
        from callbacks.page.write import write_page
    except ModuleNotFoundError as error:
        sys.exit(f"error: the page is drawn with {error.name}, which is not installed: pip install 'mambaeye[report]'")
    try:
        write_page(given.runs, output)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{output} has the report: open it in a browser")


if __name__ == "__main__":
    main()
