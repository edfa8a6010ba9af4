"""Registers in a causal sequence: learned tokens that come after every so many others, wherever the sequence is cut."""

from torch import Tensor

from mambaeye.ops.dense import insert


def register_places(tokens: int, every: int, phase: int = 0) -> range:
    """Return where the registers are that come after each `every` of so many tokens, as in with_registers."""
    total = tokens + (phase + tokens) // every
    return range(every - phase, total, every + 1)


def with_registers(tokens: Tensor, register: Tensor, every: int, phase: int) -> tuple[Tensor, list[int]]:
    """Put the register after each `every` tokens.

    Args:
        tokens: (B, T, D).
        register: (D,).
        every: tokens between registers.
        phase: how many tokens came since the last register, 0 to every - 1.

    Returns:
        (B, T + registers, D), and the places of the tokens in it.
    """
    places = register_places(tokens.shape[1], every, phase)
    total = tokens.shape[1] + len(places)
    together = insert(tokens, register.expand(len(places), -1), places)
    return together, [place for place in range(total) if place not in places]
