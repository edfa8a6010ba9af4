"""NaFlexViT: timm's own transformer for any resolution and aspect, as a control; it needs the extra timm.

Nothing of the network is written here: it is timm's NaFlexVit, with the head taken out for the harness. timm is
imported when an encoder is built, not before. Shapes: B images, H and W sides in pixels, E registers, D model width.
"""

import math
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder
from mambaeye.errors import InputError, NotInstalledError
from mambaeye.ops.dense import require_covered
from mambaeye.ops.shapes import require_sizes
from mambaeye.ops.transformer import heads_of


class NaFlexViT(DenseEncoder):
    """timm's NaFlexVit with registers; the mean of the patches answers. By default naflexvit_base_patch16_gap.

    Args:
        num_classes: Number of classes that the head tells apart.
        patch: Side of a patch in pixels.
        dim: Width of the residual stream: values a token.
        depth: Number of transformer blocks.
        heads: Heads of attention, dividing dim; null for one every 64 values of dim.
        mlp_ratio: Hidden width of a block's MLP as a multiple of dim.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        positions: One table of all places (learned), or one of rows and one of columns, which are added (factorized).
        keep_aspect: Resize the table to the square of the canvas's longer side, and cut it, so that steps along rows
            and columns are the same; otherwise to the canvas's own sides.
        registers: Extra tokens in front of the patches, which answer nothing.
        layer_scale: What every block's branches are multiplied by at first, by channel; null for no such scale.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        patch: int = 16,
        dim: int = 768,
        depth: int = 12,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        grid: int = 16,
        positions: Literal["learned", "factorized"] = "learned",
        keep_aspect: bool = False,
        registers: int = 4,
        layer_scale: float | None = 1e-5,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "patch": patch, "dim": dim, "depth": depth, "grid": grid}
        require_sizes(**sizes, mlp_ratio=mlp_ratio)
        heads = heads_of(dim, heads)
        if registers:
            require_sizes(registers=registers)
        if positions not in ("learned", "factorized"):
            raise InputError(f"encoder.positions is {positions!r}: give learned or factorized")
        if layer_scale is not None and not (math.isfinite(layer_scale) and layer_scale > 0):
            raise InputError(f"encoder.layer_scale is {layer_scale}: give a number above 0, or null")
        self.patch = self.stride = patch
        self.registers = registers
        self.trunk: Any = naflex_vit()(
            num_classes=num_classes,
            patch_size=patch,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            init_values=layer_scale,
            reg_tokens=registers,
            pos_embed=positions,
            pos_embed_grid_size=(grid, grid),
            pos_embed_ar_preserving=keep_aspect,
            global_pool="avg",
            fc_norm=True,
        )
        self.head = self.trunk.get_classifier()
        self.trunk.reset_classifier(0)  # what it answers with then is what the head sees
        self.trunk.blocks = nn.ModuleList(self.trunk.blocks)  # for the harness to find them; names stay

    def image_features(self, images: Tensor) -> Tensor:
        require_covered(images, self.patch, self.stride)
        return self.trunk(images)  # (B, 3, H, W) -> (B, D)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.trunk.blocks], nn.Identity()  # its norm is of the mean

    def extra_places(self, tokens: int) -> range:
        return range(self.registers)

    def no_weight_decay(self) -> set[str]:
        tables = {f"trunk.embeds.{name}" for name in ("pos_embed", "pos_embed_y", "pos_embed_x", "reg_token")}
        return super().no_weight_decay() | tables & dict(self.named_parameters()).keys()

    def backend(self, device: torch.device) -> str:
        return f"timm {version('timm')} on {device.type}"


def naflex_vit() -> Any:
    """Return timm's class.

    Raises:
        NotInstalledError: timm, or what it needs, is not installed; or torchvision does not fit torch.
    """
    try:
        from timm.models.naflexvit import NaFlexVit
    except ImportError as error:
        missing = f"NaFlexViT is timm's, and {error.name} is not installed"
        raise NotInstalledError(f"{missing}: pip install 'mambaeye[timm]'") from None
    except RuntimeError as error:  # of torchvision, whose operators are built for one torch
        raise NotInstalledError(
            f"NaFlexViT is timm's, whose torchvision does not fit torch {torch.__version__} ({error}): install "
            "torchvision from where torch came from"
        ) from None
    return NaFlexVit
