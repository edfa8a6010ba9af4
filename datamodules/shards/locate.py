"""Finding shards, by a folder, a URL, a brace pattern or a command, and the index that belongs to them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from datamodules.shards.index import INDEX_NAME, ShardIndex, parse_index
from datamodules.storage.limits import ReadLimits
from datamodules.storage.stream import fetch, streams
from mambaeye.errors import InputError

IN_URL = re.compile(r"[\w.,+=@%~-]+")  # of a shard's name: what means nothing else there, nor to a shell


def open_index(shards: str, where: str | None = None, limits: ReadLimits = ReadLimits()) -> ShardIndex:
    """Open the index of some shards, with where each is read from.

    Args:
        shards: a local folder; a URL of one (http, https, or what fsspec reads, such as s3 and gs); a brace pattern of
            paths or URLs, such as "data/shard-{000000..001281}.tar"; or "pipe:" and a command that prints a shard,
            such as "pipe:ssh host cat shard-{000000..001281}.tar". A pattern may name some of the index's shards.
        where: path or URL of the index; by default beside the shards. A pipe: command needs it.
        limits: to how slowly the index may come.

    Raises:
        InputError: the index cannot be read, or does not have the shards; a local shard is missing or has another size.
    """
    if where is None and not is_pattern(shards) and not streams(shards):
        require_packed(Path(shards))
        return ShardIndex.read(shards)
    where = where or beside(shards)
    content = fetch_index(where, limits)
    known = {shard.name: shard for shard in content["shards"]}
    if is_pattern(shards) or shards.startswith("pipe:"):
        sources = expand(shards)
        chosen = [known[shard_name(source, known, where)] for source in sources]
    else:
        if unfit := [name for name in known if streams(shards) and not IN_URL.fullmatch(name)]:
            raise InputError(f"{where} has the shard {unfit[0]}, a name that is not for URLs: rename it there")
        sources = [f"{shards.rstrip('/')}/{name}" for name in known]
        chosen = list(known.values())
    index = ShardIndex(Path(shards), content["classes"], chosen, sources, shards, content["pixels"])
    index.require_shards(where, "correct the pattern or the index")
    return index


def require_packed(folder: Path) -> None:
    """Require that a folder is there and not one of pictures, which are yet to be packed.

    Raises:
        InputError: it is not, or there is none.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} does not exist: give a folder of shards, or of class folders with --data.folder in place of the "
            f"shards"
        )
    if not (folder / INDEX_NAME).exists() and not any(folder.glob("*.tar")):
        raise InputError(
            f"{folder} holds no shards: if it holds class folders of pictures, give --data.folder in place of the "
            f"shards, or pack it with 'python -m datamodules.pack {folder} DEST'"
        )


def is_pattern(shards: str) -> bool:
    """Tell whether a string names shards one by one."""
    return "{" in shards or shards.endswith(".tar")


def beside(shards: str) -> str:
    """Return where the index is if nothing else is said."""
    if shards.startswith("pipe:"):
        raise InputError(
            f"{shards} does not say where the index of the shards is: give it with --data.train_index or "
            f"--data.val_index (make it with 'python -m datamodules.pack FOLDER' where the shards are files)"
        )
    folder = shards.rpartition("/")[0] if is_pattern(shards) else shards.rstrip("/")
    return f"{folder or '.'}/{INDEX_NAME}"


def fetch_index(where: str, limits: ReadLimits) -> dict[str, Any]:
    """Read an index at a path or URL; see read_index."""
    try:
        data = fetch(where, limits) if streams(where) else Path(where).read_bytes()
    except OSError as error:
        raise InputError(f"the index {where} cannot be read ({error}): see whether it is there") from None
    return parse_index(data, where, "put the one there that datamodules.pack made")


def expand(shards: str) -> list[str]:
    """Return every source that a brace pattern names."""
    try:
        return list(braceexpand(shards))
    except UnbalancedBracesError:
        raise InputError(f"the braces of {shards} do not match: write {{000000..001281}}") from None


def shard_name(source: str, known: Iterable[str], where: str) -> str:
    """Return the name in the index of the shard that a path, URL or command gives."""
    if not source.startswith("pipe:"):
        names = [name for name in known if source.rpartition("/")[2] == name]
    else:
        names = [name for name in known if name in source]
    if len(names) != 1:
        raise InputError(
            f"{source} is {'none' if not names else 'several'} of the shards in {where}: correct the pattern"
        )
    return names[0]
