"""The rule for samples that cannot be read or decoded: left out, counted and reported, up to a limit."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from datamodules.shards.index import ShardIndex
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.errors import InputError

NAMED = 5  # keys in a message

Result = TypeVar("Result")
Batch = TypeVar("Batch", GlimpseBatch, CanvasBatch)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnreadableRule:
    """Says what becomes of samples that cannot be read: workers `attempt` each, their process counts the rows left out.

    A row that is left out is invalid and bears the sample's key; one that only fills up a batch has no key.
    """

    index: ShardIndex
    max_unreadable: int
    """Samples a pass and process that may be unreadable before the run stops."""

    def attempt(self, sample_id: int, read: Callable[[], Result]) -> Result | None:
        """Return what read() gives, or None if it cannot be read and some samples may be unreadable.

        Raises:
            InputError: read() raises one, and no sample may be unreadable.
        """
        try:
            return read()
        except InputError as error:
            source = self.index.source(sample_id)
            if not self.max_unreadable:
                raise InputError(f"{error} (in {source})") from None
            log.warning("left out: %s (in %s)", error, source)
            return None

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass on the batches of a pass, count what was left out of them, and report it in the end.

        Raises:
            InputError: too many samples were left out.
        """
        unreadable: dict[str, None] = {}  # each once, under however many conditions it is missing
        for batch in batches:
            rows = zip(batch.keys, batch.valid.tolist(), strict=True)
            unreadable |= {key: None for key, valid in rows if key and not valid}
            if len(unreadable) > self.max_unreadable:
                named = ", ".join(list(unreadable)[:NAMED])
                raise InputError(
                    f"{len(unreadable)} samples of {self.index.name} could not be read, more than the "
                    f"{self.max_unreadable} of --data.loader.max_unreadable ({named}, ...): repair the shards"
                )
            yield batch
        if unreadable:
            log.warning("%d samples of %s were left out of this pass", len(unreadable), self.index.name)
