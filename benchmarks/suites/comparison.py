"""Encoders of the field against each other: all of them at equal size, and Vim's directions."""

from dataclasses import replace

from benchmarks.suites.any_scan import ANY_SCAN_FASHION
from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import Claim, Flags, Suite

PAGE = "docs/comparison.md"

# parameters within a tenth of MambaEye's 118 k, and what an encoder of canvases has seen: all
CANVAS = {"model.schedule": "none"}
VIM = {**CANVAS, "model.encoder.dim": "64", "model.optimizer.lr": "3.0e-3"}
SYSTEMS: dict[str, Flags] = {
    "vit": {
        **CANVAS,
        "model.encoder.patch": "8",
        "model.encoder.grid": "8",
        "model.encoder.dim": "48",
        "model.optimizer.lr": "1.0e-3",
    },
    "vim": VIM,
    "mambar": VIM,
    "localvim": {**VIM, "model.encoder.dim": "52"},
    "adventurer": {**VIM, "model.encoder.dim": "48", "model.encoder.headdim": "16"},
    "glimpse_vit": {"model.encoder.dim": "48", "model.encoder.heads": "4", "model.optimizer.lr": "1.0e-3"},
    "vmamba": {**VIM, "model.encoder.dim": "18"},
    "localvmamba": {**VIM, "model.encoder.dim": "22"},
    "spatialmamba": {**VIM, "model.encoder.dim": "16"},
    "efficientvim": {**CANVAS, "model.encoder.dims": "[24,36,48]", "model.optimizer.lr": "3.0e-3"},
    "himamba_style": {**VIM, "model.encoder.dim": "52"},
    "naflexvit": {**CANVAS, "model.optimizer.lr": "1.0e-3"},
}
HILBERT = {**VIM, "model.encoder.order": "hilbert"}
OVERLAYS = {**{name: name for name in SYSTEMS}, "vim_hilbert": "vim"}


def over(config: str) -> dict[str, tuple[str, ...]]:
    """Return the configs of all variants that are not MambaEye: one, and the encoder's quickstart over it."""
    return {name: (config, f"configs/encoders/{overlay}_quickstart.yaml") for name, overlay in OVERLAYS.items()}


COMPARISON = Suite(
    config="configs/digits.yaml",
    configs=over("configs/digits.yaml"),
    fit={**DIGITS.fit, "trainer.max_epochs": "30"},
    validate=DIGITS.validate,
    variants={
        "base": {},
        "varied": {"data.train_scan": "varied"},
        "sobol": {"data.train_scan": "sobol"},
        **SYSTEMS,
        "vim_hilbert": HILBERT,
    },
    evaluations={
        "resolutions": {
            "data.resolutions": "[32,48,64,96,128]",
            "data.scans": "[random,sobol]",
            "data.evaluate.num_glimpses": "64",
        }
    },
    side=48,
    measured={"systems": ("resolutions",), "controls": ("resolutions",)},
    claims={
        "systems": Claim(
            {
                "base": "MambaEye, random",
                "varied": "MambaEye, varied",
                "sobol": "MambaEye, Sobol",
                "vit": "ViT",
                "vim": "Vim",
                "mambar": "Mamba-R",
                "adventurer": "Adventurer",
                "glimpse_vit": "ViT of glimpses",
                "vim_hilbert": "Vim, Hilbert",
                "localvim": "LocalVim",
                "vmamba": "VMamba",
                "localvmamba": "LocalVMamba",
                "spatialmamba": "Spatial-Mamba",
                "efficientvim": "EfficientViM",
                "himamba_style": "Hi-Mamba-style",
            },
            at=64,
        ),
        "controls": Claim({"vit": "ViT", "naflexvit": "NaFlexViT, by timm"}, at=64),
    },
    page=PAGE,
    costs={
        "vit": 1.2,
        "vim": 3.8,
        "mambar": 4.0,
        "localvim": 6.5,
        "adventurer": 1.6,
        "vim_hilbert": 3.8,
        "vmamba": 3.0,
        "localvmamba": 3.5,
        "spatialmamba": 3.0,
        "efficientvim": 1.5,
        "himamba_style": 3.5,
    },
)

COMPARISON_FASHION = replace(
    COMPARISON,
    config="configs/fashion.yaml",
    configs=over("configs/fashion.yaml"),
    fit={**DIGITS.fit, "trainer.max_epochs": "2", "model.optimizer.warmup_epochs": "0.2"},
    validate=ANY_SCAN_FASHION.validate,
)

CIFAR10: Flags = {"data.train_shards": "data/cifar10/train", "data.val_shards": "data/cifar10/test"}
OF_CIFAR10: Flags = {
    **ANY_SCAN_FASHION.validate,
    "data.val_shards": "data/cifar10/test",
    "trainer.limit_val_batches": "16",  # 1,024 pictures: a share of 0.5 of them has a standard error of 1.6 points
}

COMPARISON_CIFAR10 = replace(COMPARISON_FASHION, fit={**COMPARISON_FASHION.fit, **CIFAR10}, validate=OF_CIFAR10)

DIRECTIONS = Suite(
    config="configs/digits.yaml",
    fit={
        **DIGITS.fit,
        "trainer.max_epochs": "15",
        "model.optimizer.lr": "3.0e-3",
        # as configs/encoders/vim_quickstart.yaml
        "model.encoder": "Vim",
        "model.encoder.dim": "48",
        "model.encoder.depth": "3",
        "model.encoder.d_state": "8",
        "model.encoder.patch": "8",
        "model.encoder.grid": "8",
    },
    validate=DIGITS.validate,
    variants={
        "base": {},
        "one": {"model.encoder.directions": "1"},
        "four": {"model.encoder.directions": "4"},
    },
    evaluations={"resolutions": {"data.resolutions": "[32,48,64,96,128]", "data.evaluate.num_glimpses": "64"}},
    side=48,
    measured={"directions": ("resolutions",)},
    claims={"directions": Claim({"one": "one", "base": "two", "four": "four"}, at=64)},
    page=PAGE,
    costs={"one": 0.6, "four": 2.0},
)

DIRECTIONS_FASHION = replace(
    DIRECTIONS,
    config="configs/fashion.yaml",
    fit={**DIRECTIONS.fit, "trainer.max_epochs": "1", "model.optimizer.warmup_epochs": "0.2"},
    validate=ANY_SCAN_FASHION.validate,
)
DIRECTIONS_CIFAR10 = replace(DIRECTIONS_FASHION, fit={**DIRECTIONS_FASHION.fit, **CIFAR10}, validate=OF_CIFAR10)
