"""Looking at a clip as it arrives: tube after tube, with a carried state, and an answer after every glimpse.

Shapes: n glimpses of a tube of F frames, C classes, K = 3 axes of a position.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mambaeye.batch import TubeBatch
from mambaeye.encoders.base import CausalEncoder, State
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import share_seen
from mambaeye.geometry.patches import cut_from_canvases


class StreamAnswer(NamedTuple):
    """The answer to what has arrived of a clip."""

    frames: int
    """That have arrived."""
    glimpses: int
    """So far."""
    probabilities: Tensor
    """(C,) float32, after the last of them."""
    confidence: Tensor
    """(n,) float32, the largest probability after each glimpse of the latest tube."""
    information_ratio: float
    """Share of the pixels of the frames so far that glimpses have shown."""


class Stream:
    """A clip of which frames still arrive.

    It holds the encoder's state, which never grows, and where the glimpses of the latest tube were.

    Args:
        encoder: in evaluation, on the device of the tubes.
    """

    def __init__(self, encoder: CausalEncoder) -> None:
        self.encoder = encoder
        self.state: State = encoder.initial_state(1)
        self.glimpses = 0
        self.logits: Tensor | None = None  # (C,), the latest
        self.pixels = self.seen = 0  # of all frames so far, and how many of them glimpses have shown
        self.positions = torch.empty(0, encoder.axes, dtype=torch.long)  # of the latest tube's glimpses, (n, K)
        self.began = self.end = 0  # its frames
        self.shown = 0  # of its pixels

    def look(self, tube: TubeBatch) -> StreamAnswer | None:
        """Take the glimpses of the next tube; None as long as there was none in any.

        Args:
            tube: with a scene.
        """
        assert tube.scene is not None
        positions = tube.scene.positions.long()  # (1, n, K)
        confidence = torch.empty(0)
        if positions.shape[1]:
            on_canvas = positions - positions.new_tensor((tube.frame, 0, 0))
            patches = cut_from_canvases(tube.scene.pixels, on_canvas, self.encoder.glimpse)
            features, self.state = self.encoder.stream_features(patches, positions, self.state)
            logits = self.encoder.logits(features)[0].float()  # (n, C)
            self.glimpses, self.logits = self.glimpses + len(logits), logits[-1]
            confidence = logits.softmax(-1).amax(-1).cpu()
        self._count(tube, positions[0].cpu())
        if self.logits is None:
            return None
        ratio = self.seen / self.pixels
        probabilities = self.logits.softmax(-1).cpu()
        return StreamAnswer(tube.file.frames, self.glimpses, probabilities, confidence, ratio)

    def _count(self, tube: TubeBatch, positions: Tensor) -> None:
        """Count the pixels of the tube's frames, and those that its glimpses (n, K) show."""
        assert tube.scene is not None
        place, row, col, frames, height, width = tube.scene.boxes[0].tolist()
        first = tube.frame + place
        end = first + frames
        began, before = first, 0
        if first < self.end:  # the last tube of a clip, which has frames of the one before
            began, before = self.began, self.shown
            positions = torch.cat((self.positions, positions))
        box = Box(began, row, col, end - began, height, width)
        shown = round(share_seen(positions.numpy(), box, self.encoder.glimpse) * math.prod(box.size))
        self.seen += shown - before
        self.pixels += (end - max(first, self.end)) * height * width
        self.positions, self.began, self.shown, self.end = positions, began, shown, end
