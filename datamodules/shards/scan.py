"""Scanning a shard front to back for what its index says of it."""

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from datamodules.files import EXTENSIONS
from datamodules.shards.index import CLIP_EXTENSION, LABEL_EXTENSION, Shard
from datamodules.shards.limits import LARGEST_IMAGE, LONGEST_KEY
from datamodules.transforms.avi import find_frames
from mambaeye.errors import InputError


def scan_shard(path: Path) -> Shard:
    """Read a shard front to back and note what it holds. Members with other extensions are ignored.

    Raises:
        InputError: the tar is damaged, cut short or without a sample; a sample has no image or clip, two, or no integer
            label; a clip is damaged; some samples are images and some are clips; a key is not UTF-8, or too long.
    """
    samples: dict[str, dict[str, int]] = {}
    for tar, member in tar_members(path):
        key, extension = base_plus_ext(member.name)
        if not member.isreg() or key is None:
            continue
        extension = extension.lower()
        if extension in (*EXTENSIONS, CLIP_EXTENSION):
            sample = samples.setdefault(key, {})
            if "offset" in sample:
                raise InputError(f"sample {key} in {path} has two images: give each a key of its own")
            if member.issparse():
                raise InputError(f"sample {key} in {path} is stored sparse: write the shard without tar's --sparse")
            sample |= {"offset": member.offset_data, "size": member.size}
            if extension == CLIP_EXTENSION:
                sample["frames"] = count_frames(tar, member, f"sample {key} in {path}")
        elif extension == LABEL_EXTENSION:
            sample = samples.setdefault(key, {})
            if "label" in sample:
                raise InputError(f"sample {key} in {path} has two labels: give each sample a key of its own")
            sample["label"] = read_label(tar, member, key, path)
    for key, sample in samples.items():
        if "offset" not in sample:
            raise InputError(f"sample {key} in {path} has no image: give it one of .{', .'.join(EXTENSIONS)}")
        if "label" not in sample:
            raise InputError(f"sample {key} in {path} has no label: give it a .{LABEL_EXTENSION} file with its number")
        if not is_utf8(key):
            raise InputError(f"the key {key!a} in {path} is not UTF-8: rename the sample")
        if len(key.encode()) > LONGEST_KEY:
            raise InputError(f"the key {key[:60]}... in {path} has more than {LONGEST_KEY} bytes: rename the sample")
    if not samples:
        raise InputError(f"{path} holds no sample: remove it from the folder, or pack it again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    labels, offsets, sizes = ([sample[name] for sample in samples.values()] for name in ("label", "offset", "size"))
    frames = [sample["frames"] for sample in samples.values() if "frames" in sample]
    if 0 < len(frames) < len(samples):
        raise InputError(f"{path} holds images and clips: keep them in shards of their own")
    return Shard(path.name, path.stat().st_size, digest, list(samples), labels, offsets, sizes, frames or None)


def tar_members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of an uncompressed tar, in order.

    tarfile takes a damaged header, or the end of the file, for the end of the archive; here that must be an empty block
    with nothing but zeros behind it.

    Raises:
        InputError: there is no such file; it is damaged, cut short or no tar.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                yield tar, member
                tar.members.clear()  # type: ignore[attr-defined]  # or a tar with a million members stays in memory
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            marked = len(file.peek(tarfile.BLOCKSIZE)) >= tarfile.BLOCKSIZE
            clean = all(chunk.count(0) == len(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder with .tar files") from None
    except (tarfile.ReadError, EOFError) as error:
        raise InputError(f"{path} is damaged or not a tar file ({error}): copy it again") from None
    if not clean:
        raise InputError(f"{path} is damaged, or two tars in one file: no header at byte {end}: copy it again")
    if not marked:
        raise InputError(f"{path} is cut short: it ends after {end} bytes without a tar's end mark: copy it again")


def count_frames(tar: tarfile.TarFile, member: tarfile.TarInfo, what: str) -> int:
    """Count the frames of a clip in a tar.

    Raises:
        InputError: it is cut short, damaged or too large.
    """
    if member.size > LARGEST_IMAGE:
        raise InputError(f"{what} has {member.size} bytes, more than {LARGEST_IMAGE}: cut the clip into shorter ones")
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is a file"
    return len(find_frames(file.read(), what))


def is_utf8(text: str) -> bool:
    """Tell whether a file name can be written as UTF-8; Python marks the bytes that could not be read as such."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, key: str, path: Path) -> int:
    """Read the number in a .cls member; key and path are for the message."""
    try:
        file = tar.extractfile(member)
        assert file is not None, f"{member.name} is no file"
        data = file.read()
        return int(data)
    except tarfile.ReadError as error:
        raise InputError(f"{path} is cut short ({error}): copy it again") from None
    except ValueError:
        raise InputError(
            f"sample {key} in {path} has the label {data[:20]!r}: write its class number into its .{LABEL_EXTENSION}"
        ) from None
