"""MambaEye: images as sequences of glimpses, an answer after every one (arXiv 2511.19963)."""

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.geometry.coverage import information_ratio
from mambaeye.hub import from_pretrained, push_to_hub
from mambaeye.loss import scheduled_cross_entropy
from mambaeye.weights import load, load_published, save

__all__ = [
    "EncoderConfig",
    "MambaEye",
    "from_pretrained",
    "information_ratio",
    "load",
    "load_published",
    "push_to_hub",
    "save",
    "scheduled_cross_entropy",
]
