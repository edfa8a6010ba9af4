"""Stacks that the encoder is measured against: of the same sizes, behind the same embedding of glimpses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye

MLP_RATIO = 4
HEADDIM_OF_VIT = 64


class Peer(nn.Module):
    """MambaEye's embedding, then another stack: (patches, positions) -> (B, T, D), as MambaEye.features."""

    def __init__(self, encoder: MambaEye, stack: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder, self.stack = encoder, stack

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.stack(self.encoder.embed(patches, positions, None))


def embedding_alone(config: EncoderConfig) -> MambaEye:
    """Return an encoder without blocks worth mentioning, for its embedding."""
    return MambaEye(EncoderConfig(**{**vars(config), "depth": 1}), "torch")


def transformers_mamba2(config: EncoderConfig) -> Peer:
    """Build the transformers library's Mamba2, with its own defaults; on a CPU it runs its reference path in torch."""
    from transformers import Mamba2Config, Mamba2Model
    from transformers.utils import logging

    logging.set_verbosity_error()  # it recommends its CUDA kernels at every start
    model = Mamba2Model(
        Mamba2Config(
            vocab_size=1,
            hidden_size=config.dim,
            num_hidden_layers=config.depth,
            state_size=config.d_state,
            conv_kernel=config.d_conv,
            expand=config.expand,
            head_dim=config.headdim,
            num_heads=config.expand * config.dim // config.headdim,
            n_groups=1,
            use_cache=False,
        )
    )
    peer = Peer(embedding_alone(config), lambda x: model(inputs_embeds=x).last_hidden_state)
    peer.model = model
    return peer


def mamba_ssm_stack(config: EncoderConfig) -> Peer:
    """Build pre-norm residual blocks of mamba_ssm.Mamba2, as its documentation shows them; needs a GPU."""
    from mamba_ssm import Mamba2

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(config.dim, eps=1e-5)
            self.mixer = Mamba2(config.dim, config.d_state, config.d_conv, headdim=config.headdim, expand=config.expand)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mixer(self.norm(x))

    blocks = (Residual() for _ in range(config.depth))
    return Peer(embedding_alone(config), nn.Sequential(*blocks, nn.RMSNorm(config.dim, eps=1e-5)))


def vit(config: EncoderConfig) -> Peer:
    """Build a ViT's blocks of the same width and depth, with full attention (scaled_dot_product_attention)."""
    layer = nn.TransformerEncoderLayer(
        config.dim,
        config.dim // HEADDIM_OF_VIT,
        MLP_RATIO * config.dim,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return Peer(embedding_alone(config), nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False))


class Projections(nn.Module):
    """The dense projections of MambaEye by themselves, of random rows: nothing with these weights can be faster.

    Every layer's projections take rows of their own and give a gradient to them, as in the encoder; the glimpses' own
    projection gives none.
    """

    def __init__(self, config: EncoderConfig, batch: int, length: int) -> None:
        super().__init__()
        inner = config.expand * config.dim
        width = 2 * inner + 2 * config.d_state + inner // config.headdim
        glimpse = 3 * config.patch_size**2 + config.axes * config.move_embedding_dim
        self.glimpse = nn.Linear(glimpse, config.dim)
        self.into = nn.ModuleList(nn.Linear(config.dim, width, bias=False) for _ in range(config.depth))
        self.out = nn.ModuleList(nn.Linear(inner, config.dim, bias=False) for _ in range(config.depth))
        self.register_buffer("glimpses", torch.randn(batch, length, glimpse))
        self.rows = nn.ParameterList(
            torch.randn(batch, length, width) for _ in range(config.depth) for width in (config.dim, inner)
        )

    def features(self, patches: Tensor, positions: Tensor) -> list[Tensor]:
        layers = [layer for pair in zip(self.into, self.out, strict=True) for layer in pair]
        return [self.glimpse(self.glimpses), *(layer(x) for layer, x in zip(layers, self.rows, strict=True))]
