"""The choice of what an encoder runs on: kernels that were asked for, are there, fit its sizes and compute rightly."""

import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.ops.checked_kernels import CheckedKernels, CheckedScan
from mambaeye.ops.kernels import Scan, load, load_scan

Kernels = Literal["auto", "cuda", "torch"]
INSTALL = "pip install --no-build-isolation 'causal-conv1d>=1.6' 'mamba-ssm>=2.3.2'"
MULTIPLE = 8  # of channels, which the convolution reads as vectors
WIDEST_CONV = 4


def select_backend(wanted: Kernels, x: Tensor, unsupported_reason: str | None) -> CheckedKernels | None:
    """Return the kernels for an input, or None for plain torch.

    auto takes them where they can be had, and warns once where a GPU has to do without them.

    Args:
        wanted: auto, cuda or torch.
        x: the input, for its device and dtype.
        unsupported_reason: why the sizes do not fit the kernels, if they do not.

    Raises:
        InputError: they are wanted and cannot be had.
    """
    if not are_for(wanted, x):
        return None
    if wanted == "cuda":
        return checked_kernels(True)
    if unsupported_reason:
        return warn_fallback(unsupported_reason)
    try:
        return checked_kernels(False)
    except ImportError as error:
        return warn_fallback(missing(error))


def are_for(wanted: Kernels, x: Tensor) -> bool:
    """Tell whether kernels are to be tried on an input.

    Raises:
        InputError: they are wanted, and cannot run there.
    """
    can_run = x.device.type == "cuda" and x.dtype != torch.float64
    if wanted == "cuda" and not can_run:
        raise InputError(
            f"model.encoder.kernels is cuda, which cannot run {x.dtype} on {x.device}: choose auto or torch"
        )
    return wanted != "torch" and can_run


def select_scan(wanted: Kernels, x: Tensor) -> Scan | None:
    """Return the kernel of the selective scan for an input, or None for plain torch, as select_backend does.

    Raises:
        InputError: it is wanted and cannot be had.
    """
    if not are_for(wanted, x):
        return None
    try:
        return checked_scan(wanted == "cuda")
    except ImportError as error:
        if wanted == "cuda":
            raise InputError(missing(error)) from None
        return warn_fallback(missing(error))


def require_kernels(unsupported_reason: str | None) -> None:
    """Check that the kernels can be had, for an encoder whose sizes they support unless a reason is given.

    Raises:
        InputError: they cannot.
    """
    if unsupported_reason:
        raise InputError(unsupported_reason)
    try:
        load()
    except ImportError as error:
        raise InputError(missing(error)) from None


@cache
def checked_kernels(insist: bool) -> CheckedKernels:
    """Load the kernels and return what checks them, one for all encoders of a process."""
    return CheckedKernels(load(), insist)


@cache
def checked_scan(insist: bool) -> CheckedScan:
    """Load the kernel of the selective scan, likewise."""
    return CheckedScan(load_scan(), insist)


def missing(error: ImportError) -> str:
    """Say what to do about packages that do not load."""
    return f"the CUDA kernels do not load ({error}): install them with {INSTALL}"


@cache
def warn_fallback(reason: str) -> None:
    """Warn, once a reason, that a GPU runs without its kernels."""
    warnings.warn(f"{reason}; until then the GPU runs plain torch, which is slower", stacklevel=2)


def unsupported_reason(inner: int, headdim: int, d_state: int, d_conv: int) -> str | None:
    """Return why the CUDA kernels cannot take these sizes, with the nearest that they can; None if they can."""
    if d_conv > WIDEST_CONV:
        return f"encoder.d_conv is {d_conv}: the CUDA kernels take {WIDEST_CONV} at most"
    channels, heads = inner + 2 * d_state, inner // headdim
    if inner % headdim == 0 and channels % MULTIPLE == 0 and (inner + channels + heads) % MULTIPLE == 0:
        return None
    start = (
        f"encoder.headdim {headdim} and d_state {d_state} make an input projection of {inner + channels + heads} "
        f"values, and the CUDA kernels take multiples of {MULTIPLE}"
    )
    # the two conditions together: 2 * d_state = -inner, and then heads = -inner, both modulo 8
    near_heads = nearest((h for h in divisors(inner) if (inner // h + inner) % MULTIPLE == 0), headdim)
    if inner % 2 or near_heads is None:
        return f"{start}: give expand * dim, now {inner}, as a multiple of {MULTIPLE}"
    first = -inner // 2 % (MULTIPLE // 2) or MULTIPLE // 2
    near_state = nearest(range(first, d_state + MULTIPLE, MULTIPLE // 2), d_state)
    return f"{start}: the nearest are headdim {near_heads} and d_state {near_state}"


def divisors(number: int) -> Iterator[int]:
    """Yield the divisors of a number, ascending."""
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)


def nearest(candidates: Iterable[int], wanted: int) -> int | None:
    """Return the candidate nearest to what is wanted, the smaller of two; None of none."""
    return min(candidates, key=lambda candidate: abs(candidate - wanted), default=None)
