"""Clips -> tubes of frames, one clip after the other, as they are decoded."""

from collections.abc import Callable, Iterator, Sequence

from mambaeye.batch import FileBatch, TubeBatch


class StreamLoader:
    """Hands over clips tube by tube, in this process and none ahead, so that no more than a tube of one is held.

    A process without a clip has a batch without one, for Lightning calls nothing where there is no batch.

    Args:
        files: of this process.
        opener: yields the tubes of one.
    """

    def __init__(self, files: Sequence[str], opener: Callable[[str], Iterator[TubeBatch]]) -> None:
        self.files, self.opener = files, opener

    def __iter__(self) -> Iterator[TubeBatch | FileBatch]:
        if not self.files:
            yield FileBatch(None, [])
        for file in self.files:
            yield from self.opener(file)
