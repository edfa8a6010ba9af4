"""Files of weights on the command line: inspect FILE says what a file is, its sizes, and whether it fits."""

import argparse
import sys
import warnings

from mambaeye.errors import InputError
from mambaeye.weights.inspection import inspect


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit code 0 when the file is all of an encoder, 1 when it is not or cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m mambaeye.weights", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("inspect", help="say what a file is, its sizes, and whether it fits")
    command.add_argument(
        "file",
        metavar="FILE",
        help="a published file, a checkpoint, a .safetensors file, a folder that mambaeye.save wrote, or hf://...",
    )
    given = parser.parse_args(args)
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # of files that torch.save did not write
    try:
        found = inspect(given.file)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{given.file}: ", end="")
    print(*found.lines(), sep="\n")
    sys.exit(not found.fits)


if __name__ == "__main__":
    main()
