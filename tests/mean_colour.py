"""The smallest encoder that there can be, for tests of what must work with any."""

import torch
from torch import Tensor

from mambaeye.encoders.base import CanvasEncoder


class MeanColour(CanvasEncoder):
    """Answers once, from the mean colour of a canvas; it has no state."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def features(self, canvases: Tensor) -> Tensor:
        return canvases.float().mean((1, 2)) / 255
