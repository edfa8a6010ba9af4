"""The mixers on the CUDA kernels of mamba-ssm and causal-conv1d: their only importer, and only when they are wanted.

What these compute, mamba2.py and s6.py say in plain torch; what they round besides, docs/running.md. Shapes: as there.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from mambaeye.ops.mamba2 import Mamba2, MixerState, last_inputs, without_padding

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""s6.selective_scan without its chunk."""
CHUNK = 256  # steps of one chunk of the scan: mamba-ssm's own choice


class CudaKernels:
    """add_norm and mix, as Block computes them in torch, on kernels.

    Raises:
        ImportError: a package is missing or does not load.
    """

    def __init__(self) -> None:
        from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
        from mamba_ssm.ops.triton.layer_norm import rms_norm_fn
        from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined, mamba_split_conv1d_scan_combined

        self.whole_op, self.chunk_op, self.step_op = (
            mamba_split_conv1d_scan_combined,
            mamba_chunk_scan_combined,
            selective_state_update,
        )
        self.conv_op, self.conv_step_op = causal_conv1d_fn, causal_conv1d_update
        self.add_norm_op, self.gated_norm_op = rms_norm_fn, rmsnorm_fn

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """Return norm(residual + x) in the dtype of x, and the sum in float32: one pass over both."""
        return self.add_norm_op(
            x, norm.weight, None, residual=residual, eps=norm.eps, prenorm=True, residual_in_fp32=True
        )

    def mix(
        self, mixer: Mamba2, u: Tensor, state: MixerState | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        """Compute Mamba2.forward for whole sequences (no state), chunks, or single glimpses without gradient.

        Single glimpses change the state that they are given, and return it. Of whole sequences lengths do not matter,
        for what comes after them is seen by nobody.
        """
        zxbcdt = mixer.in_proj(u)
        if state is None:
            return self.whole(mixer, zxbcdt), None
        if in_place(u, lengths):
            return self.step(mixer, zxbcdt.squeeze(1), state), state
        return self.chunk(mixer, zxbcdt, state, lengths)

    def whole(self, mixer: Mamba2, zxbcdt: Tensor) -> Tensor:
        """Start from nothing seen: convolution, scan, norm and projection as one operation, (B, T, .) -> (B, T, D)."""
        return self.whole_op(
            zxbcdt,
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            mixer.dt_bias,
            decay_rates(mixer),
            mixer.D,
            chunk_size=CHUNK,
            rmsnorm_weight=mixer.norm.weight,
            rmsnorm_eps=mixer.norm.eps,
            outproj_weight=mixer.out_proj.weight,
            headdim=mixer.headdim,
            norm_before_gate=False,
        )

    def chunk(
        self, mixer: Mamba2, zxbcdt: Tensor, state: MixerState, lengths: Tensor | None
    ) -> tuple[Tensor, MixerState]:
        """Go on from a state: the fused operation always starts its convolution from zeros, so its parts one by one."""
        z, inputs, dt = split(mixer, zxbcdt)
        if lengths is not None:
            dt = without_padding(dt, lengths)
        xbc, conv = self.conv_op(
            inputs.transpose(1, 2),  # (B, X, T), channels last in memory, as the states must be
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            initial_states=state.conv.to(inputs.dtype).transpose(1, 2).contiguous().transpose(1, 2),
            return_final_states=True,
            activation="silu",
        )
        x, B, C = xbc.transpose(1, 2).split((mixer.inner, mixer.d_state, mixer.d_state), dim=-1)
        y, ssm = self.chunk_op(
            x.unflatten(-1, (mixer.heads, mixer.headdim)),
            dt,
            decay_rates(mixer),
            B.unsqueeze(2),
            C.unsqueeze(2),
            chunk_size=CHUNK,
            D=mixer.D,
            dt_bias=mixer.dt_bias,
            initial_states=state.ssm,
            dt_softplus=True,
            return_final_states=True,
        )
        y = self.gated_norm(mixer, y.flatten(2), z)
        conv = conv.to(state.conv.dtype) if lengths is None else last_inputs(inputs, state.conv, lengths)
        return mixer.out_proj(y), MixerState(conv, ssm)

    def step(self, mixer: Mamba2, zxbcdt: Tensor, state: MixerState) -> Tensor:
        """Take one glimpse, (B, .) -> (B, 1, D); the state is changed in place."""
        z, xbc, dt = split(mixer, zxbcdt)
        conv = state.conv.to(xbc.dtype)  # the same memory unless autocast narrows
        xbc = self.conv_step_op(xbc, conv, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, "silu")
        if conv.dtype != state.conv.dtype:
            state.conv.copy_(conv)
        x, B, C = xbc.split((mixer.inner, mixer.d_state, mixer.d_state), dim=-1)
        by_channel = (mixer.heads, mixer.headdim)
        y = self.step_op(  # expanded, so that strides of zero tell the kernel that a head shares its numbers
            state.ssm,
            x.unflatten(-1, by_channel),
            dt.unsqueeze(-1).expand(-1, *by_channel),
            decay_rates(mixer)[:, None, None].expand(*by_channel, mixer.d_state),
            B.unsqueeze(1),
            C.unsqueeze(1),
            mixer.D.unsqueeze(-1).expand(by_channel),
            dt_bias=mixer.dt_bias.unsqueeze(-1).expand(by_channel),
            dt_softplus=True,
        )
        return mixer.out_proj(self.gated_norm(mixer, y.flatten(1), z)).unsqueeze(1)

    def gated_norm(self, mixer: Mamba2, y: Tensor, z: Tensor) -> Tensor:
        """Return norm(y * silu(z))."""
        return self.gated_norm_op(y, mixer.norm.weight, None, z=z, eps=mixer.norm.eps, norm_before_gate=False)


def split(mixer: Mamba2, zxbcdt: Tensor) -> tuple[Tensor, ...]:
    """Return the parts of the input projection: z, (x, B, C) and dt."""
    return zxbcdt.split((mixer.inner, mixer.channels, mixer.heads), dim=-1)


def decay_rates(mixer: Mamba2) -> Tensor:
    """Return A, (H,) float32."""
    return -mixer.A_log.float().exp()


def in_place(u: Tensor, lengths: Tensor | None = None) -> bool:
    """Tell whether this is one glimpse of each image without gradient, for which kernels change the state in place."""
    return u.shape[1] == 1 and lengths is None and not torch.is_grad_enabled()


@cache
def load() -> CudaKernels:
    """Import the kernels, once."""
    return CudaKernels()


@cache
def load_scan() -> Scan:
    """Import the kernel of the selective scan, once: compiled, unlike the others of mamba-ssm, and had without them.

    Raises:
        ImportError: it is missing, or mamba-ssm was built without it.
    """
    import selective_scan_cuda
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    if not hasattr(selective_scan_cuda, "fwd"):
        raise ImportError("selective_scan_cuda has no fwd: mamba-ssm was built without its CUDA part")

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """Compute s6.selective_scan of float32: directions are groups that share B and C."""
        x_, dt_ = (t.flatten(2).transpose(1, 2).contiguous() for t in (x, dt))  # (B, K E, L)
        B_, C_ = (t.permute(0, 2, 3, 1).contiguous() for t in (B, C))  # (B, K, N, L)
        y: Tensor = selective_scan_fn(x_, dt_, A.flatten(0, 1), B_, C_, D.flatten())
        return y.transpose(1, 2).unflatten(2, x.shape[2:])

    return scan
