"""Small clips, and class folders of them."""

import cv2
import numpy as np

from datamodules.transforms.avi import write_avi
from datamodules.transforms.clips import Clip
from datamodules.transforms.headers import PixelLimit

LIMIT = PixelLimit()


def noise(frames: int, height: int = 20, width: int = 24, seed: int = 0) -> np.ndarray:
    """Frames of noise, (frames, height, width, 3) uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    """Encode RGB."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def avi(frames: np.ndarray) -> bytes:
    """The clip of such frames, without loss."""
    return write_avi([png(frame) for frame in frames], *frames.shape[1:3], 25)


def clip(frames: np.ndarray, what: str = "sample a") -> Clip:
    """The same, opened."""
    return Clip.open(avi(frames), LIMIT, what)
