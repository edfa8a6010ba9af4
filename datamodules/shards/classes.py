"""Class names, which give labels their meaning: two sets of shards go together by name, never by number alone."""

from collections.abc import Sequence

import numpy as np

from datamodules.shards.index import ShardIndex
from mambaeye.errors import InputError

NAMED = 3  # classes that a message names


def relabel(index: ShardIndex, classes: Sequence[str], whose: str) -> None:
    """Give an index another class list, and its labels their places in it; it must have the same names.

    Args:
        index: is changed, unless it has the same list.
        classes: class names, in the order that labels are to have.
        whose: says in a message which classes these are.

    Raises:
        InputError: it has other names; or a name several times, in another order.
    """
    if index.classes == list(classes):
        return
    places = {name: place for place, name in enumerate(classes)}
    if index.classes and sorted(index.classes) == sorted(classes) and len(places) == len(classes):
        index.labels = np.array([places[name] for name in index.classes])[index.labels]
        index.classes = list(classes)
        return
    raise InputError(
        f"the classes of {index.name} are not {whose}, for {differences(index.classes, classes)}: give shards of the "
        f"same classes"
    )


def differences(found: Sequence[str], expected: Sequence[str]) -> str:
    """Return in a few words how two class lists differ, with the first names that do."""
    words = []
    for verb, names in (("has", set(found) - set(expected)), ("lacks", set(expected) - set(found))):
        if names:
            first = ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")
            words.append(f"it {verb} {first}" + (f" ({len(names)} in all)" if len(names) > NAMED else ""))
    return " and ".join(words) or "some name is there several times"


def require_count(index: ShardIndex, num_classes: int) -> None:
    """Require that an index has so many classes.

    Raises:
        InputError: it has another number of classes.
    """
    if len(index.classes) != num_classes:
        raise InputError(
            f"{index.name} has {len(index.classes)} classes in its index and data.num_classes is {num_classes}: "
            f"set --data.num_classes {len(index.classes)}, or give other shards"
        )
