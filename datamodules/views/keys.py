"""The keys of all random draws: what is drawn depends on its key alone, never on who draws it or what came before."""

import numpy as np

TRAINING, VALIDATION, PREDICTION, CALIBRATION = 0, 1, 2, 3  # the first part of every key
# the part after an epoch's, or a sample's, that keeps further draws apart
CANVAS_SIDE, POLICY_SEED, CANVAS_FRAMES = 1, 2, 3

Key = tuple[int, ...]


def side_of_step(canvas: tuple[int, int], key: Key, step: int) -> int:
    """Draw the side of all canvases of an optimizer step.

    Args:
        canvas: smallest and largest side, in pixels, inclusive.
        key: of the epoch.
        step: index of the optimizer step in the epoch.
    """
    return int(np.random.default_rng((*key, CANVAS_SIDE, step)).integers(*canvas, endpoint=True))


def frames_of_step(frames: tuple[int, int], key: Key, step: int) -> int:
    """Draw the number of frames of all canvases of an optimizer step, where they are of clips.

    Args:
        frames: smallest and largest number, inclusive.
        key: of the epoch.
        step: index of the optimizer step in the epoch.
    """
    return int(np.random.default_rng((*key, CANVAS_FRAMES, step)).integers(*frames, endpoint=True))


def policy_seed(key: Key) -> int:
    """Draw what a policy's own draws for an image depend on: an integer from 0, of 63 bits.

    Args:
        key: of the image at one resolution; neither its planned scan nor the number of glimpses matters.
    """
    return draw_seed(np.random.default_rng((*key, POLICY_SEED)))


def draw_seed(rng: np.random.Generator) -> int:
    """Draw a seed: an integer from 0, of 63 bits."""
    return int(rng.integers(np.iinfo(np.int64).max))
