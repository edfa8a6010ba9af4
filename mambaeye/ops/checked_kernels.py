"""Kernels held against plain torch where each is first used: a wrong one ends the run, or is given up with a sentence.

Everything here is causal, so the first glimpses of a few images tell: they are compared with plain torch's, values and
gradients, in the precision of the run. The kernels take as many as the run has, for they tune themselves for its sizes.
Mamba2's take noise, on which a GPU's were within 1 %. On a run's own features they were off by much more in bf16, and
whether the features did that (by gradients that are small sums of large terms) was not settled: see docs/gpu.md.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.ops.add_norm import add_norm
from mambaeye.ops.kernels import CudaKernels, Scan, in_place
from mambaeye.ops.mamba2 import Mamba2, MixerState
from mambaeye.ops.s6 import selective_scan

IMAGES, STEPS = 2, 300  # that are compared: more than one of the kernels' chunks of 256
# largest norm of a difference, as a share of the norm: a wrong kernel is off by a good part of it. float32 has factors
# in TF32 within the kernels, bf16 eight bits of mantissa
TOLERANCES = {torch.float32: 2e-2, torch.float16: 2e-2, torch.bfloat16: 6e-2}

Run = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
"""Sequences (B, T, ...) and states (B, ...) -> what is compared: sequences, or states if there are no more steps."""


class Use(NamedTuple):
    """All that kernels are chosen and compiled by: one comparison holds for the calls that agree in it."""

    kernels: str
    """Their name in a sentence, plural."""
    device: torch.device
    dtype: torch.dtype
    """Autocast's, or the input's."""
    with_gradient: bool
    sizes: tuple[int, ...]


class Checks:
    """Comparisons of kernels with plain torch that were made so far.

    Args:
        insist: end the run at a difference, instead of going on without the kernel.
    """

    def __init__(self, insist: bool) -> None:
        self.insist = insist
        self.passed: dict[Use, bool] = {}

    def trust(
        self,
        name: str,
        sizes: tuple[int, ...],
        kernel: Run,
        plain: Run,
        sequences: Sequence[Tensor],
        states: Sequence[Tensor] = (),
        weights: Sequence[Tensor] = (),
        on_noise: bool = False,
    ) -> bool:
        """Tell whether kernels may be used, which a comparison decides the first time.

        Args:
            name: of the kernels, plural.
            sizes: all that they are compiled for.
            kernel: runs them.
            plain: does the same in plain torch.
            sequences: arguments (B, T, ...) of both.
            states: arguments (B, ...) of both, or none.
            weights: parameters whose gradients are compared where they have some.
            on_noise: compare on noise of the sequences' sizes.

        Raises:
            InputError: they differ, and are insisted on.
        """
        weights = [weight for weight in weights if weight.requires_grad]
        with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (*sequences, *weights))
        first = sequences[0]
        kind = first.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else first.dtype
        use = Use(name, first.device, dtype, with_gradient, sizes)
        if use not in self.passed:
            sequences = [noise(sequence) for sequence in sequences] if on_noise else sequences
            of_kernel = results(kernel, sequences, states, weights, with_gradient)
            few = [sequence[:IMAGES, :STEPS] for sequence in sequences]
            of_plain = results(plain, few, [state[:IMAGES] for state in states], weights, with_gradient)
            if not all(result.isfinite().all() for result in of_plain):
                return True  # nothing to compare with: the next use will tell
            errors = [*map(relative, of_kernel, of_plain)]
            self.passed[use] = max(errors) <= TOLERANCES[dtype]
            if not self.passed[use]:
                of_values = len(errors) - with_gradient * len([*sequences, *weights])
                self.give_up(use, max(errors[:of_values]), max(errors[of_values:], default=0.0))
        return self.passed[use]

    def give_up(self, use: Use, values: float, gradients: float) -> None:
        """Say that kernels are not used from now on, or raise if they are insisted on."""
        of_gradients = f", gradients by {gradients:.0%}" if use.with_gradient else ""
        fault = (
            f"{use.kernels} do not compute on {use.device} in {use.dtype} what plain torch does (values are off by "
            f"{values:.0%} of their norm{of_gradients}; {TOLERANCES[use.dtype]:.0%} are allowed)"
        )
        remedy = "build mamba-ssm and causal-conv1d anew for this torch and GPU"
        if self.insist:
            raise InputError(f"{fault}: {remedy}, or give --model.encoder.kernels torch")
        warnings.warn(f"{fault}, so the run goes on in plain torch, which is slower: {remedy}", stacklevel=2)


class CheckedKernels:
    """CudaKernels, each checked at its first use, with plain torch in place of what fails.

    Args:
        kernels: what is checked.
        insist: as for Checks.
    """

    def __init__(self, kernels: CudaKernels, insist: bool) -> None:
        self.kernels, self.checks = kernels, Checks(insist)

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """Return norm(residual + x) in the dtype of x, and the sum in float32."""

        def run(function: Callable[..., tuple[Tensor, Tensor]]) -> Run:
            return lambda sequences, _: function(sequences[0], sequences[1] if len(sequences) > 1 else None, norm)

        sequences = [x] if residual is None else [x, residual]
        sizes = (x.shape[-1], len(sequences))
        kernels = ("the fused norms", sizes, run(self.kernels.add_norm), run(add_norm))
        if self.checks.trust(*kernels, sequences, weights=[norm.weight], on_noise=True):
            return self.kernels.add_norm(x, residual, norm)
        return add_norm(x, residual, norm)

    def mix(
        self, mixer: Mamba2, u: Tensor, state: MixerState | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        """Compute Mamba2.forward; as CudaKernels.mix does, so with its change of a single glimpse's state."""

        def run(function: Callable[..., tuple[Tensor, MixerState | None]]) -> Run:
            def of(sequences: Sequence[Tensor], states: Sequence[Tensor]) -> Sequence[Tensor]:
                some = lengths[: len(sequences[0])] if lengths is not None else None
                y, after = function(mixer, sequences[0], MixerState(*states) if states else None, some)
                ends = () if after is None or not states or u.shape[1] > STEPS else after
                return (y, *ends)

            return of

        way = "whole sequences" if state is None else "single glimpses" if in_place(u, lengths) else "chunks"
        way = way if state is None or lengths is None else "padded chunks"
        sizes = (mixer.inner, mixer.headdim, mixer.d_state, mixer.d_conv)
        states, weights = state or (), [*mixer.parameters()]
        kernels = (f"the Mamba2 kernels for {way}", sizes, run(self.kernels.mix), run(Mamba2.__call__))
        if self.checks.trust(*kernels, [u], states, weights, on_noise=True):
            return self.kernels.mix(mixer, u, state, lengths)
        y, after = mixer(u, state, lengths)
        if state is not None and in_place(u, lengths):
            for part, new in zip(state, after, strict=True):
                part.copy_(new)
            return y, state
        return y, None if state is None else after


class CheckedScan:
    """The kernel of the selective scan, checked likewise.

    Args:
        scan: what is checked.
        insist: as for Checks.
    """

    def __init__(self, scan: Scan, insist: bool) -> None:
        self.scan, self.checks = scan, Checks(insist)

    def __call__(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """Compute s6.selective_scan."""
        A_, D_ = (weight.detach() for weight in (A, D))  # their gradients are sums of what the sequences' are made of

        def run(function: Callable[..., Tensor]) -> Run:
            return lambda sequences, _: [function(sequences[0], sequences[1], A_, *sequences[2:], D_)]

        sizes = (*A.shape,)
        kernels = ("the selective scan's kernels", sizes, run(self.scan), run(selective_scan))
        return (self.scan if self.checks.trust(*kernels, [x, dt, B, C]) else selective_scan)(x, dt, A, B, C, D)


def results(
    run: Run, sequences: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Tensor], with_gradient: bool
) -> list[Tensor]:
    """Return the first STEPS of IMAGES of all outputs, and the gradients of a sum over the first of them."""
    inputs = [sequence.detach().requires_grad_(with_gradient) for sequence in sequences]
    outputs = [output[:IMAGES, :STEPS] for output in run(inputs, [state.detach().clone() for state in states])]
    if not with_gradient:
        return outputs
    y = outputs[0]
    upstream = torch.arange(y.numel(), device=y.device).cos().to(y.dtype).view_as(y)
    gradients: Any = torch.autograd.grad(y, [*inputs, *weights], upstream)
    of_inputs = [gradient[:IMAGES, :STEPS] for gradient in gradients[: len(inputs)]]
    return [*(output.detach() for output in outputs), *of_inputs, *gradients[len(inputs) :]]


def noise(x: Tensor) -> Tensor:
    """Return normal noise, always the same, of the shape, dtype and device of x, and with a gradient if it has one."""
    generator = torch.Generator(x.device).manual_seed(0)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device).requires_grad_(x.requires_grad)


def relative(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference as a share of the other's; infinity where the first is not finite."""
    difference = (one.double() - other.double()).norm() / other.double().norm().clamp_min(torch.finfo().tiny)
    return difference.nan_to_num(nan=torch.inf).item()
