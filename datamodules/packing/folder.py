"""A folder of one's own pictures, or videos -> shards to train and to validate on, packed on first use: data.folder.

Packed anew only if files have changed, by their names, sizes and times. Each state of the folder has shards of its own,
so that a run that reads the ones from before is not disturbed:

    DATA_DIR/<name>-<checksum of the path>/current.json     says which packing is the folder's now
    DATA_DIR/<name>-<checksum of the path>/<checksum of the files>/{train,val}
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.files import EXTENSIONS, VIDEOS, extension_of
from datamodules.packing.clips import Clips
from datamodules.packing.listing import TRAIN, VAL, Listing, list_split, list_two
from datamodules.packing.sources import Source
from datamodules.packing.write import SEED, PackingOptions, Plan, pack
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.pixels import RGB, Pixels
from mambaeye.atomic import atomic_write
from mambaeye.errors import InputError

HELD_OUT = 0.1  # of each class, where there is no folder to validate on
TRAIN_FOLDERS, VAL_FOLDERS = ("train", "training"), ("val", "valid", "validation")
CURRENT = "current.json"
ANY_LIMIT = PixelLimit()  # where no frame is decoded
PATIENCE = 600.0  # seconds to wait for another process that packs the same folder, without a sign of life


def class_names(folder: str | Path) -> list[str]:
    """Return the names of a folder's classes, sorted, without listing all of it.

    Raises:
        InputError: there is no such folder, it has no class folder with an image, or a single one.
    """
    folder = Path(folder)
    train, _ = sources_in(folder)
    kinds = VIDEOS if isinstance(train, Clips) else EXTENSIONS
    names = sorted(name for name in train.folders() if has_file(train.path / train.prefix / name, kinds))
    place = train.path / train.prefix
    if not names:
        raise InputError(
            f"data.folder {place} has no class folder with an image: give a folder with a folder of pictures for each "
            f"class, such as PHOTOS/cat/1.jpg and PHOTOS/dog/2.jpg"
        )
    if len(names) == 1:
        raise InputError(
            f"data.folder {place} has pictures of a single class, {names[0]}: give a folder with a folder of pictures "
            f"for each of two classes or more"
        )
    return names


def sources_in(folder: Path, limit: PixelLimit = ANY_LIMIT) -> tuple[Source, Source | None]:
    """Return where a folder's pictures to train on are and, if it has such, those to validate on.

    Where it has no picture at all, and videos, these are.

    Args:
        folder: of class folders.
        limit: of the frames of videos.

    Raises:
        InputError: there is no such folder; or several that could be meant.
    """
    if not folder.is_dir():
        raise InputError(f"data.folder {folder} is not a folder: give one with a folder of pictures for each class")
    name = str(folder)
    found = set(Source(name, folder).folders())

    def source(prefix: str = "") -> Source:
        return Clips(name, folder, prefix, limit) if of_videos else Source(name, folder, prefix)

    of_videos = not has_file(folder, EXTENSIONS) and has_file(folder, VIDEOS)
    train, val = ([part for part in names if part in found] for names in (TRAIN_FOLDERS, VAL_FOLDERS))
    if not train or not found <= {*TRAIN_FOLDERS, *VAL_FOLDERS, "test"}:
        return source(), None
    for parts in (train, val):
        if len(parts) > 1:
            raise InputError(f"data.folder {folder} has {' and '.join(parts)}, which mean the same: remove one of them")
    return source(f"{train[0]}/"), source(f"{val[0]}/") if val else None


def has_file(folder: Path, extensions: Sequence[str]) -> bool:
    """Tell whether a file below a folder has one of these extensions; nothing that is hidden counts."""
    for _, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(extension_of(name) in extensions for name in names if not name.startswith(".")):
            return True
    return False


def ensure_packed(folder: Path, data_dir: Path, max_unreadable: int, limit: PixelLimit, pixels: Pixels = RGB) -> None:
    """Pack a folder's pictures, or videos, unless that was done, and say what there is. Other processes wait meanwhile.

    Args:
        folder: with class folders; or with train/ and val/ that have such, or train/ alone.
        data_dir: folder for the shards.
        max_unreadable: how many images may be unreadable, and are left out.
        limit: images of more pixels are unreadable.
        pixels: channels and bits that images have; those of others are unreadable.

    Raises:
        InputError: it has no images in class folders, too many are unreadable, or another process does not get on.
    """
    class_names(folder)  # has the clearer messages
    home = home_of(folder, data_dir)
    if home.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"data.data_dir {data_dir} lies in data.folder {folder}: give another --data.data_dir")
    leave_out = "--data.loader.max_unreadable {}"
    stored = pixels._replace(levels=())
    options = PackingOptions(most_unreadable=max_unreadable, leave_out=leave_out, limit=limit, pixels=stored)
    home.mkdir(parents=True, exist_ok=True)
    with alone(home):
        listing = list_folder(folder, limit)
        name = Plan.of(listing, options).fingerprint[:12]
        before = current(home)
        if name != before or not (home / name).exists():
            print(f"packing {folder} into {home / name}" + (", for its files have changed" if before else ""))
            pack(home / name, (TRAIN, VAL), lambda _: listing, options)
            with atomic_write(home / CURRENT) as path:
                path.write_text(json.dumps({"folder": str(folder.resolve()), "packing": name}), encoding="utf-8")
            if before and before != name:
                print(f"the packing from before is still in {home / before}: delete it when no run needs it")
    counts = {part: len(entries) for part, (_, entries) in listing.parts.items()}
    how = "" if sources_in(folder)[1] else f" ({HELD_OUT:.0%} of each class, at least one, held out by seed {SEED})"
    print(
        f"{folder}: {len(listing.classes)} classes, {counts[TRAIN]} {listing.noun} to train on and {counts[VAL]} to "
        f"validate on{how}, packed in {home / name}",
        flush=True,
    )


def packed(folder: Path, data_dir: Path) -> Path:
    """Return where a folder's shards are, in train/ and val/, after ensure_packed."""
    home = home_of(folder, data_dir)
    name = current(home)
    if name is None:
        raise InputError(f"{folder} is not packed in {home}: give a --data.data_dir that all processes see")
    return home / name


def list_folder(folder: Path, limit: PixelLimit) -> Listing:
    """List a folder's pictures, or videos: those to train on and those to validate on.

    Args:
        folder: as for ensure_packed.
        limit: of the frames of videos.

    Raises:
        InputError: there is none; or what there is is not clear.
    """
    train, val = sources_in(folder, limit)
    listing = list_split(train, None, HELD_OUT, SEED) if val is None else list_two(train, val)
    if train.prefix and "test" in Source(train.name, folder).folders():
        listing.remarks.append(f"{folder / 'test'} is not read: only train and val are")
    return listing


def home_of(folder: Path, data_dir: Path) -> Path:
    """Return where all packings of a folder are."""
    place = folder.resolve()
    return data_dir / f"{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"


def current(home: Path) -> str | None:
    """Return the name of the packing that is a folder's now; None before the first."""
    try:
        name = json.loads((home / CURRENT).read_text(encoding="utf-8"))["packing"]
    except FileNotFoundError:
        return None
    return str(name)


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Let one process in at a time; the others wait for as long as they see it get on.

    Raises:
        InputError: nothing below the folder has changed for too long.
    """
    lock, before = FileLock(home / "lock"), -1.0
    while True:
        try:
            lock.acquire(timeout=PATIENCE)
            break
        except Timeout:
            now = last_change(home)
            if now <= before:
                raise InputError(
                    f"another process holds {home / 'lock'} and has written nothing for {PATIENCE:g} seconds: see "
                    f"whether it is stuck, end it, and run the same command again"
                ) from None
            before = now
    try:
        yield
    finally:
        lock.release()


def last_change(home: Path) -> float:
    """Return when a file below a folder was last written, in seconds; it may be renamed or removed meanwhile."""
    latest = 0.0
    for path in home.rglob("*"):
        with suppress(FileNotFoundError):
            latest = max(latest, path.stat().st_mtime)
    return latest
