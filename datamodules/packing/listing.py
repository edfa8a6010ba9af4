"""Listing what a packing is made of: images by part, classes, and what is to be said of the rest."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.packing.sources import Entry, Images, Source, list_entries
from mambaeye.errors import InputError

TRAIN, VAL = "train", "val"  # the parts, where there are two
HEIC = (".heic", ".heif")
EXAMPLES = 5  # classes that a remark names


class Listing(NamedTuple):
    """The images that are to be packed."""

    name: str
    """Of where they come from, for messages."""
    classes: list[str]
    parts: dict[str, tuple[Images, list[Entry]]]
    """Name of each part: where its images are, and which; with an empty name, the only one."""
    remarks: list[str]
    """All that is to be said of files and classes that are passed over."""
    noun: str = "images"
    """Word for the samples, in messages."""


def list_one(source: Source, classes: Sequence[str] | None) -> Listing:
    """List the images of a source as one part; see list_entries."""
    entries, names, others = list_entries(source, classes)
    return Listing(source.name, names, {"": (source, entries)}, remarks_on(source, names, entries, others), source.noun)


def list_split(source: Source, classes: Sequence[str] | None, share: float, seed: int) -> Listing:
    """List the images of a source, and hold a share of each class out for validation.

    Args:
        source: with class folders.
        classes: the class list; None takes the sorted names of the class folders.
        share: of a class's images, 0 to 1.
        seed: of which ones.

    Raises:
        InputError: as list_entries; or no class has an image to hold out.
    """
    listing = list_one(source, classes)
    _, entries = listing.parts[""]
    held_out = hold_out(entries, share, seed)
    counts = Counter(entry.label for entry in entries)
    single = [name for label, name in enumerate(listing.classes) if counts[label] == 1]
    if not held_out:
        raise InputError(
            f"{source.name} has a single {source.noun[:-1]} of each class, so that none can be held out for "
            f"validation: add {source.noun}"
        )
    parts: dict[str, tuple[Images, list[Entry]]] = {
        TRAIN: (source, [entry for entry in entries if entry.key not in held_out]),
        VAL: (source, [entry for entry in entries if entry.key in held_out]),
    }
    remarks = list(listing.remarks)
    if single:
        remarks.append(
            f"classes with a single {source.noun[:-1]}, which is trained on and never validated: {some(single)}"
        )
    return Listing(source.name, listing.classes, parts, remarks, source.noun)


def hold_out(entries: Sequence[Entry], share: float, seed: int) -> set[str]:
    """Choose a share of each class's images, of two or more at least one and never all, and return their keys.

    Which ones is drawn image by image, by (seed, key): where images are added or removed, hardly another one changes
    sides.
    """
    by_class: dict[int, list[str]] = defaultdict(list)
    for entry in entries:
        by_class[entry.label].append(entry.key)
    chosen: set[str] = set()
    for keys in by_class.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
        chosen.update(keys[: min(len(keys) - 1, max(1, round(share * len(keys))))])
    return chosen


def list_two(train: Source, val: Source) -> Listing:
    """List the images of two sources with the same classes, one to train on and one to validate on.

    Raises:
        InputError: as list_entries; or the second has a class that the first has not.
    """
    entries, classes, others = list_entries(train, None)
    val_entries, val_classes, val_others = list_entries(val, None)
    labels = {name: label for label, name in enumerate(classes)}
    if strangers := [name for name in val_classes if name not in labels]:
        raise InputError(
            f"{val.prefix} of {val.name} has the class {strangers[0]} ({len(strangers)} such), which {train.prefix} "
            f"has no image of: give both the same class folders"
        )
    val_entries = [entry._replace(label=labels[val_classes[entry.label]]) for entry in val_entries]
    remarks = remarks_on(train, classes, entries, others)
    remarks += [text for text in remarks_on(val, classes, val_entries, val_others) if text not in remarks]
    if missing := [name for name in classes if name not in val_classes]:
        remarks.append(f"classes without an image to validate on in {val.prefix}: {some(missing)}")
    return Listing(train.name, classes, {TRAIN: (train, entries), VAL: (val, val_entries)}, remarks, train.noun)


def remarks_on(source: Source, classes: Sequence[str], entries: Sequence[Entry], others: Counter[str]) -> list[str]:
    """Return what is to be said of files that are no images, and of class folders without one."""
    remarks = []
    if heic := sum(others.pop(kind) for kind in [*others] if kind.lower() in HEIC):
        remarks.append(f"passed over {heic} HEIC pictures, which are not read here: save them as JPEG to have them too")
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(EXAMPLES))
        remarks.append(f"passed over files that are not {source.noun}: {kinds}")
    with_images = {entry.key.partition("/")[0] for entry in entries}
    if empty := sorted({*source.folders()} - with_images):
        one = f"{'an' if source.noun[0] in 'aeiou' else 'a'} {source.noun[:-1]}"
        remarks.append(f"passed over class folders without {one} in {source.prefix or source.name}: {some(empty)}")
    return remarks


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are."""
    return ", ".join(names[:EXAMPLES]) + (f", ... ({len(names)} in all)" if len(names) > EXAMPLES else "")
