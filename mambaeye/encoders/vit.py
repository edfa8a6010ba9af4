"""ViT and DeiT: a transformer over the patches of a whole canvas (Dosovitskiy et al. 2021, Touvron et al. 2021).

Parameters have the authors' names, which are timm's. Shapes: B images, H and W sides in pixels, R rows and C columns of
patches, E extra tokens, D model width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.ops.dense import PatchEmbed, resized
from mambaeye.ops.shapes import layers_in, of_layout, require_sizes, square_side
from mambaeye.ops.transformer import STD, TransformerBlock, heads_of, reset_linear


class ViT(DenseEncoder):
    """Transformer with a learned position table, which is resized to the canvas, and a class token that answers.

    Args:
        num_classes: Number of classes that the head tells apart.
        patch: Side of a patch in pixels.
        dim: Width of the residual stream: values a token.
        depth: Number of transformer blocks.
        heads: Heads of attention, dividing dim; null for one every 64 values of dim, as DeiT has.
        mlp_ratio: Hidden width of a block's MLP as a multiple of dim.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        distilled: Answer from a class token and a distillation token together: DeiT's distilled models, whose two
            heads' mean is one head on both tokens.
        channels: Channels of images.
    """

    published_as = "deit"

    def __init__(
        self,
        num_classes: int = 1000,
        patch: int = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        grid: int = 14,
        distilled: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "patch": patch, "dim": dim, "depth": depth}
        require_sizes(**sizes, mlp_ratio=mlp_ratio, grid=grid, channels=channels)
        self.channels = channels
        self.patch = self.stride = patch
        self.grid = grid
        self.tokens = 1 + distilled
        self.patch_embed = PatchEmbed(dim, patch, patch, channels)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim)) if distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.tokens + self.grid**2, dim))
        heads = heads_of(dim, heads)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, round(dim * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(self.tokens * dim, num_classes)
        reset_linear(self)
        for table in (self.cls_token, self.dist_token, self.pos_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=STD)

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        of_tokens, of_patches = self.pos_embed[0].split((self.tokens, self.grid**2))
        places = resized(of_patches.unflatten(0, (self.grid, self.grid)), *patches.shape[1:3])
        first = [token[0] for token in (self.cls_token, self.dist_token) if token is not None]
        extra = (torch.cat(first) + of_tokens).expand(len(images), -1, -1)  # (B, E, D)
        x = torch.cat((extra, (patches + places).flatten(1, 2)), dim=1)  # (B, E + R C, D)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, : self.tokens]).flatten(1)  # (B, E D)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> range:
        return range(self.tokens)

    def no_weight_decay(self) -> set[str]:
        tables = {"cls_token", "pos_embed", *(["dist_token"] if self.dist_token is not None else [])}
        return super().no_weight_decay() | tables

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight"} <= tensors.keys():
            return None
        state, distilled = dict(tensors), "dist_token" in tensors
        with of_layout(cls.published_as, where):
            if "head_dist.weight" in tensors:  # the mean of two heads is one head on both tokens
                both = [(state.pop(f"{name}.weight"), state.pop(f"{name}.bias")) for name in ("head", "head_dist")]
                weights, biases = zip(*both, strict=True)
                state |= {"head.weight": torch.cat(weights, dim=1) / 2, "head.bias": sum(biases) / 2}
            dim, _, patch, _ = state["patch_embed.proj.weight"].shape
            num_classes, _ = state["head.weight"].shape
            hidden, _ = state["blocks.0.mlp.fc1.weight"].shape
            _, places, _ = state["pos_embed"].shape
            settings = {
                "num_classes": num_classes,
                "patch": patch,
                "dim": dim,
                "depth": layers_in(state, "blocks."),
                "mlp_ratio": hidden / dim,
                "grid": square_side(places - 1 - distilled),
                "distilled": distilled,
            }
        return PublishedWeights(settings, state)
