"""Findings of all processes of a run, put together."""

from typing import TypeVar

import torch

Found = TypeVar("Found")


def of_all_ranks(found: list[Found]) -> list[Found]:
    """Return what all processes have found, that of rank 0 first; to be called by all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found
    of_ranks: list[list[Found]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(of_ranks, found)
    return [one for of_rank in of_ranks for one in of_rank]
