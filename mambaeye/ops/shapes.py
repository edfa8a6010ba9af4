"""Sizes of encoders: which there can be, and what the names and shapes of a state dict tell of them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from mambaeye.errors import InputError

LARGEST = 2**20  # so that a file with larger sizes is refused and not tried


def require_sizes(**sizes: float) -> None:
    """Require that each size of an encoder can be one: at least 1, and not beyond all measure.

    Raises:
        InputError: one cannot.
    """
    for name, value in sizes.items():
        if not 1 <= value <= LARGEST:
            allowed = "at least 1" if value < 1 else f"at most {LARGEST}"
            raise InputError(f"encoder.{name} is {value}: give {allowed}")


@contextmanager
def of_layout(layout: str, where: str) -> Iterator[None]:
    """Say in a sentence what is wrong with a state dict of a known layout, where its sizes are read.

    Args:
        layout: its name.
        where: the file, for the message.

    Raises:
        InputError: a tensor is missing, or shapes do not belong together.
    """
    try:
        yield
    except KeyError as error:
        raise InputError(f"{where} is laid out as {layout}, and {error} is missing") from None
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where} is laid out as {layout}, and its shapes do not belong together ({error})") from None


def layers_in(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many layers there are whose tensors are called prefix, a number, a dot and more."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def square_side(places: int) -> int:
    """Return the side of a square grid of so many places.

    Raises:
        ValueError: no square has so many.
    """
    side = math.isqrt(max(places, 0))
    if side * side != places or not side:
        raise ValueError(f"a position table of {places} places is of no square")
    return side
