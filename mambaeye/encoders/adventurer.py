"""Adventurer: causal Mamba2 over the patches of a whole canvas, in reading order (arXiv 2410.07599).

The nearest relative of MambaEye: the same mixer, but on dense patches with a position table, and with two tricks in
place of a second direction. Every layer first sees the mean of all tokens (heading average), and some read the patches
from the end. Parameters have the authors' names. Shapes: B images, R rows and C columns of patches, M = R C patches, D
model width.
"""

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.ops.checked_kernels import CheckedKernels
from mambaeye.ops.dense import PatchEmbed, resized
from mambaeye.ops.kernel_selection import Kernels, require_kernels, select_backend, unsupported_reason
from mambaeye.ops.mamba2 import Mamba2, require_mixer
from mambaeye.ops.precision import wide
from mambaeye.ops.shapes import layers_in, of_layout, require_sizes, square_side

STD = 0.02  # that tokens, the position table and the head start with


class SwiGLU(nn.Module):
    """w3(SiLU(w1 x) * w2 x), with biases, which start at zero.

    Args:
        dim: D.
        hidden: width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.w3 = nn.Linear(hidden, dim)
        for linear in (self.w1, self.w2, self.w3):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token by itself: (B, M, D) -> (B, M, D)."""
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Layer(nn.Module):
    """Mamba2 behind a heading average, then SwiGLU, both behind an RMSNorm and added to the residual stream.

    Args:
        dim: D.
        hidden: width of SwiGLU.
        flip: read the patches from the last to the first; the class token stays last.
        mixer: d_state, d_conv, expand and headdim of Mamba2.
    """

    def __init__(self, dim: int, hidden: int, flip: bool, **mixer: int) -> None:
        super().__init__()
        self.flip = flip
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba2(dim, **mixer)
        self.norm_mlp = nn.RMSNorm(dim, eps=1e-5)
        self.mlp = SwiGLU(dim, hidden)

    def forward(self, x: Tensor, kernels: CheckedKernels | None) -> Tensor:
        """Return the residual stream behind the layer: (B, M + 1, D), float32 or wider, the class token last."""
        u = self.norm(x.to(self.norm.weight.dtype))
        u = self.turned(u)
        u = torch.cat((u.mean(1, keepdim=True), u), dim=1)  # (B, 1 + M + 1, D)
        mixed, _ = self.mixer(u, None) if kernels is None else kernels.mix(self.mixer, u, None)
        x = x + self.turned(mixed[:, 1:])
        return x + self.mlp(self.norm_mlp(x.to(self.norm_mlp.weight.dtype)))

    def turned(self, x: Tensor) -> Tensor:
        """Return tokens in the order in which the layer reads them; and from that order, in their own."""
        return torch.cat((x[:, :-1].flip(1), x[:, -1:]), dim=1) if self.flip else x


class Adventurer(DenseEncoder):
    """Strictly causal Mamba2 layers over patches in reading order; a class token, which comes last, answers.

    Args:
        num_classes: Number of classes that the head tells apart.
        patch: Side of a patch in pixels.
        dim: Width of the residual stream: values a token.
        depth: Number of layers.
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in patches.
        expand: Inner width of the mixer as a multiple of dim.
        headdim: Channels a head of the recurrence; divides expand * dim.
        mlp_ratio: Hidden width of SwiGLU as a multiple of dim.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        flipped_layers: Layers, counted from 0, that read the patches from the last to the first. The authors mean every
            second one, but their code, with which the published weights were trained, flips 2 and 3 alone.
        kernels: CUDA kernels of mamba-ssm and causal-conv1d: cuda, plain torch, or auto for those that can be had.

    Raises:
        InputError: a size cannot be; or kernels is "cuda", and the packages or the sizes do not allow it.
    """

    published_as = "adventurer"

    def __init__(
        self,
        num_classes: int = 1000,
        patch: int = 16,
        dim: int = 256,
        depth: int = 12,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        mlp_ratio: float = 2.5,
        grid: int = 14,
        flipped_layers: tuple[int, ...] = (2, 3),
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        of_mixer = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "headdim": headdim}
        require_sizes(num_classes=num_classes, patch=patch, dim=dim, depth=depth, **of_mixer)
        require_sizes(mlp_ratio=mlp_ratio, grid=grid)
        require_mixer(expand * dim, headdim, d_conv)
        self.patch = self.stride = patch
        self.grid = grid
        self.kernels = kernels
        self.unsupported_reason = unsupported_reason(expand * dim, headdim, d_state, d_conv)
        if kernels == "cuda":
            require_kernels(self.unsupported_reason)
        self.patch_embed = PatchEmbed(dim, patch, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2 + 1, dim))
        hidden = round(dim * mlp_ratio)
        self.layers = nn.ModuleList(Layer(dim, hidden, i in flipped_layers, **of_mixer) for i in range(depth))
        self.norm_f = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as the vision Mambas do; projections within the layers, as torch or Mamba2's recurrence draw them."""
        for weight in (self.cls_token, self.pos_embed, self.head.weight):
            nn.init.trunc_normal_(weight, std=STD)
        nn.init.zeros_(self.head.bias)
        for layer in cast(Iterable[Layer], self.layers):
            layer.mixer.out_proj.weight.div_(math.sqrt(len(self.layers)))

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        of_patches, of_token = self.pos_embed[0].split((self.grid**2, 1))
        places = resized(of_patches.unflatten(0, (self.grid, self.grid)), *patches.shape[1:3])
        token = (self.cls_token[0] + of_token).expand(len(images), -1, -1)  # (B, 1, D)
        x = torch.cat(((patches + places).flatten(1, 2), token), dim=1)  # (B, M + 1, D)
        x = x.to(wide(self.norm_f.weight.dtype))
        kernels = select_backend(self.kernels, x, self.unsupported_reason)
        for layer in self.layers:
            x = layer(x, kernels)
        return self.norm_f(x[:, -1].to(self.norm_f.weight.dtype))

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.layers], self.norm_f

    def extra_places(self, tokens: int) -> list[int]:
        return [tokens]

    def backend(self, device: torch.device) -> str:
        if select_backend(self.kernels, torch.empty(0, device=device), self.unsupported_reason):
            return "the CUDA kernels of mamba-ssm and causal-conv1d"
        return super().backend(device)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"cls_token", "pos_embed"}

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"cls_token", "pos_embed", "layers.0.mixer.dt_bias", "layers.0.norm_mlp.weight"} <= tensors.keys():
            return None
        with of_layout(cls.published_as, where):
            dim, _, patch, _ = tensors["patch_embed.proj.weight"].shape
            num_classes, _ = tensors["head.weight"].shape
            (inner,) = tensors["layers.0.mixer.norm.weight"].shape
            (heads,) = tensors["layers.0.mixer.A_log"].shape
            channels, _, d_conv = tensors["layers.0.mixer.conv1d.weight"].shape
            hidden, _ = tensors["layers.0.mlp.w1.weight"].shape
            _, places, _ = tensors["pos_embed"].shape
            settings = {
                "num_classes": num_classes,
                "patch": patch,
                "dim": dim,
                "depth": layers_in(tensors, "layers."),
                "d_state": (channels - inner) // 2,
                "d_conv": d_conv,
                "expand": inner // dim,
                "headdim": inner // heads,
                "mlp_ratio": hidden / dim,
                "grid": square_side(places - 1),
            }
        return PublishedWeights(settings, dict(tensors))
