"""Images, clips or volumes -> WebDataset shards with their index.

python -m datamodules.pack IMAGES DEST              packs a folder, or a tar, of class folders: class/.../image.jpg
python -m datamodules.pack IMAGES DEST --split 0.1  into DEST/train, and a tenth of each class into DEST/val
python -m datamodules.pack IDX DEST                 packs MNIST's four files, or its kin's, into DEST/train and DEST/val
python -m datamodules.pack CLIPS DEST --clips       packs class folders of videos, or of folders of frames
python -m datamodules.pack VOLUMES DEST --volumes   packs class folders of NIfTI files, as clips of their slices
python -m datamodules.pack IMAGES DEST --channels 5 --bits 16   packs TIFFs or PNGs of such pixels as they are
python -m datamodules.pack SHARDS                   indexes a folder of shards anew

An image's bytes are stored as they are, in the order of --seed, under its path without the extension as the key; images
of IDX files (train-images-idx3-ubyte and the like, plain or .gz) become greyscale PNGs. Clips become AVIs of whole
pictures: videos are decoded to JPEGs, and frames that are JPEGs or PNGs stay as they are. Volumes become AVIs of gray
PNGs, slices from below to above, turned to the nearest of the axes right, front, up: voxels stored as 8 bits keep their
values, others have the 0.5th percentile of the file become black and the 99.5th white, unless --window says which
values do. Until all is complete, everything lies in DEST.packing; when a packing was interrupted, the same command
continues it.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from datamodules.files import VIDEOS, VOLUMES
from datamodules.packing.clips import Clips
from datamodules.packing.idx import find_idx, list_idx
from datamodules.packing.listing import TRAIN, VAL, Listing, list_one, list_split
from datamodules.packing.sources import Source, decompressed
from datamodules.packing.volumes import Volumes
from datamodules.packing.write import SAMPLES_PER_SHARD, SEED, PackingOptions, pack
from datamodules.parallel import in_parallel, positive
from datamodules.shards.index import INDEX_NAME, Shard, ShardIndex, read_index, write_index
from datamodules.shards.scan import scan_shard
from datamodules.transforms.headers import MAX_PIXELS, PixelLimit
from datamodules.transforms.nifti import Grays
from datamodules.transforms.pixels import RGB, Pixels
from mambaeye.errors import InputError


def pack_source(
    path: Path,
    dest: Path,
    prefix: str,
    classes: Sequence[str] | None,
    split: float | None,
    options: PackingOptions,
    clips: bool = False,
    volumes: Grays | None = None,
) -> None:
    """Pack a folder or a tar of class folders, or a folder of IDX files, into shards, and print what was done.

    Args:
        path: the folder or tar; a tar may be compressed (gz, bz2, xz), and is then unpacked beside the shards.
        dest: folder for the shards; new, empty, or complete from an earlier run with the same arguments.
        prefix: what stands before the class folders.
        classes: the class list; None takes the sorted names of the class folders, or the labels of IDX files.
        split: share of each class that goes into dest/val, the rest into dest/train; None for all into dest. IDX files
            come split.
        options: see there.
        clips: pack videos and folders of frames instead of images.
        volumes: pack NIfTI files instead of images, in this way.

    Raises:
        InputError: nothing to pack, or not clearly; the destination holds something else; unreadable images.
    """
    if dest.resolve().is_relative_to(path.resolve()):
        raise InputError(f"{dest} lies in {path}, which it is packed from: choose a folder outside")
    idx = None if clips or volumes else find_idx(path)
    if not options.pixels.is_rgb and (clips or volumes or idx):
        kind = "IDX files" if idx else "clips"
        raise InputError(f"--channels and --bits are of images, and {path} is to give {kind}")
    if idx and (prefix or split is not None):
        raise InputError(f"{path} has IDX files, which have no class folders and come split: drop --prefix and --split")
    parts = (TRAIN, VAL) if idx or split is not None else ("",)

    def list_images(folder: Path) -> Listing:
        if idx:
            return list_idx(path.name, idx, classes, options.limit, folder)
        place = decompressed(path, folder)
        source = Source(path.name, place, prefix)
        if clips:
            source = Clips(path.name, place, prefix, options.limit)
        elif volumes:
            source = Volumes(path.name, place, prefix, options.limit, volumes)
        if split is None:
            return list_one(source, classes)
        return list_split(source, classes, split, options.seed)

    pack(dest, parts, list_images, options)
    for part in parts:
        summary(dest / part)
    if volumes:
        print("looked at whole, depth scaled as rows and columns are, by --data.frames side --data.train.frames side")


def reindex(folder: Path, classes: Sequence[str] | None, jobs: int, pixels: Pixels | None = None) -> None:
    """Index a folder of shards anew; without a class list or pixels, with those of the index which is there.

    Raises:
        InputError: no shards; a damaged one; no class list, or one that does not fit the labels.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder} has no .tar files to index: give DEST to pack a folder of images")
    if classes is None and not (folder / INDEX_NAME).exists():
        raise InputError(f"{folder} has no index to take the class names from: give them with --classes FILE")
    if classes is None:
        before = read_index(folder)
        classes, pixels = before["classes"], pixels or before["pixels"]
    elif pixels is None:  # all that is taken from an index that may be the reason for a new one
        with suppress(InputError):
            pixels = read_index(folder)["pixels"]

    def work(path: Path, advance: Callable[[int], None]) -> Shard:
        shard = scan_shard(path)
        advance(1)
        return shard

    shards = in_parallel(work, paths, jobs, len(paths), "indexing, shards")
    ShardIndex(folder, classes, shards)  # raises if labels or keys are wrong
    write_index(folder, classes, shards, pixels=pixels or RGB)
    summary(folder)


def summary(folder: Path) -> None:
    """Print what a folder of shards holds now."""
    content = read_index(folder)
    count, size = sum(len(shard.keys) for shard in content["shards"]), sum(shard.bytes for shard in content["shards"])
    left_out = len(content.get("packing", {}).get("left_out", []))
    frames = [shard.frames for shard in content["shards"] if shard.frames is not None]
    noun = "clips" if frames else "images"
    print(
        f"{folder}: {noun} {count}, classes {len(content['classes'])}, shards {len(content['shards'])}, "
        f"{size / 1e6:.1f} MB"
        + (f", frames a clip {min(map(min, frames))} to {max(map(max, frames))}" if frames else "")
        + ("" if content["pixels"].is_rgb else f", {content['pixels'].words}")
        + (f"; {left_out} unreadable ones left out" if left_out else "")
    )


def class_list(path: Path) -> list[str]:
    """Read the class names in a file, one a line.

    Raises:
        InputError: the file is not there, not text, has no names, or one of them twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"--classes {path} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"--classes {path} is not text: give a file with a class name a line") from None
    if not names:
        raise InputError(f"--classes {path} is empty: give a file with a class name a line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"--classes {path} has {repeated[0]} twice: name each class once, the first has label 0")
    return names


def grays(window: Sequence[float] | None, voxel: float | None, volumes: bool) -> Grays | None:
    """Return how volumes are packed, or None where none are.

    Raises:
        InputError: a window without values in it, or a voxel without a side; or either without volumes.
    """
    if not volumes:
        if window or voxel is not None:
            raise InputError(f"--{'window' if window else 'voxel'} is for volumes: give --volumes, too")
        return None
    if voxel is not None and not 0 < voxel < math.inf:
        raise InputError(f"--voxel is {voxel:g}: give the side of a voxel, above 0, in the files' unit")
    if window and not -math.inf < window[0] < window[1] < math.inf:
        raise InputError(f"--window is {window[0]:g} {window[1]:g}: give two values, the lower first")
    return Grays((window[0], window[1]) if window else None, voxel)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1 or, of the arguments' form, 2."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder or tar (.gz, .bz2, .xz) of class folders; or folder of IDX files",
    )
    parser.add_argument(
        "dest", type=Path, metavar="DEST", nargs="?", help="new folder; without it, SOURCE is indexed anew"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--clips",
        action="store_true",
        help=f"pack videos (.{', .'.join(VIDEOS)}) and folders of frames, each a clip, instead of images",
    )
    kinds.add_argument(
        "--volumes",
        action="store_true",
        help=f"pack NIfTI files (.{', .'.join(VOLUMES)}), each a clip of its slices, instead of images: needs the "
        "extra nifti",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="of volumes: values that become black and white, such as -1000 400 of a CT (default: 8 bits as they are, "
        "of others the 0.5th and 99.5th percentile of each file)",
    )
    parser.add_argument(
        "--voxel",
        type=float,
        metavar="MM",
        help="of volumes: bring voxels to this side along all axes (default: as they are, and counted as cubes)",
    )
    parser.add_argument(
        "--channels",
        type=positive,
        metavar="N",
        help=f"channels that every image has, a TIFF or PNG, kept as they are (default: {RGB.channels}, and images of "
        f"all kinds are read as RGB of {RGB.bits} bits)",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(8, 16),
        help=f"bits of each of their values, without a sign (default: {RGB.bits})",
    )
    parser.add_argument("--prefix", help="what stands before the class folders in SOURCE, such as train/")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one a line, label 0 first (default: sorted folder names, or the labels of IDX files)",
    )
    parser.add_argument(
        "--samples_per_shard",
        type=positive,
        metavar="N",
        help=f"images a shard, at most (default: {SAMPLES_PER_SHARD})",
    )
    parser.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="share of each class that goes into DEST/val, the rest into DEST/train: of two images or more at least "
        "one, of a single one none (default: all into DEST)",
    )
    parser.add_argument("--seed", type=int, help=f"of the order of the images, and of the split (default: {SEED})")
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "skip"),
        help="images that do not decode: list and refuse (default), or leave out",
    )
    parser.add_argument(
        "--max_pixels",
        type=positive,
        metavar="N",
        help=f"pixels that an image may have; one of more counts as one that does not decode (default: {MAX_PIXELS})",
    )
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="threads (default: one a core)")
    given = parser.parse_args(args)
    try:
        classes = class_list(given.classes) if given.classes else None
        pixels = Pixels(given.channels or RGB.channels, given.bits or RGB.bits)
        pixels.require_possible("--")
        if given.dest is None or given.dest.resolve() == given.source.resolve():
            of_images = ("prefix", "samples_per_shard", "split", "seed", "unreadable", "max_pixels")
            for name in ("clips", "volumes", "window", "voxel", *of_images):
                if getattr(given, name) not in (None, False):
                    raise InputError(f"--{name} is for packing images: without DEST, shards are only indexed anew")
            reindex(given.source, classes, given.jobs, pixels if given.channels or given.bits else None)
        else:
            if given.seed is not None and given.seed < 0:
                raise InputError(f"--seed is {given.seed}: give 0 or more")
            if given.split is not None and not 0 < given.split < 1:
                raise InputError(f"--split is {given.split:g}: give a share between 0 and 1, such as 0.1")
            volumes = grays(given.window, given.voxel, given.volumes)
            prefix = "".join(f"{part}/" for part in (given.prefix or "").split("/") if part not in ("", "."))
            options = PackingOptions(
                per_shard=given.samples_per_shard or SAMPLES_PER_SHARD,
                seed=SEED if given.seed is None else given.seed,
                most_unreadable=math.inf if given.unreadable == "skip" else 0,
                limit=PixelLimit(given.max_pixels or MAX_PIXELS, "--max_pixels"),
                jobs=given.jobs,
                pixels=pixels,
            )
            pack_source(given.source, given.dest, prefix, classes, given.split, options, given.clips, volumes)
    except (InputError, OSError) as error:  # of the system's, too: no space, no permission
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues")


if __name__ == "__main__":
    main()
