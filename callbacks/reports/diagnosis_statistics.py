"""Diagnoses of many images -> what is drawn and written of a condition: means over images, and shares of moves.

Shapes: N images, T glimpses, S kept steps, L layers, H heads, R bins of the rows moved, and as many of the columns.
"""

import numpy as np
from torch import Tensor

from callbacks.plots.diagnosis import ConditionDiagnosis, TrainingMoves
from mambaeye.evaluation.diagnosis import Diagnosis
from mambaeye.evaluation.result import ConditionResult

BY_LAYER = ("norm", "change", "written")  # of a layer
BY_HEAD = ("decay", "left")  # of each of its heads
BINS = 25  # of moves, an axis, or up to twice as many


class DiagnosisSums:
    """Sums of a condition's diagnoses over images, batch after batch.

    Attributes:
        images: how many were added.
    """

    def __init__(self) -> None:
        self.images = 0
        self.sums: dict[str, np.ndarray] = {}  # (T, L) or (T, L, H)
        self.moves: list[np.ndarray] = []  # (T - 1, 2) an image

    def add(self, diagnosis: Diagnosis, valid: Tensor) -> None:
        """Add a batch; valid, (B,) bool on the CPU, says which of its images count."""
        counted = Diagnosis(*(part[valid].double() for part in diagnosis))
        sums = {name: getattr(counted, name).sum(0).numpy() for name in (*BY_LAYER, *BY_HEAD)}
        sums["norm_squared"] = counted.norm.square().sum(0).numpy()
        self.sums = {name: self.sums.get(name, 0) + added for name, added in sums.items()}
        self.moves += [np.diff(trajectory, axis=0) for trajectory in diagnosis.positions[valid].numpy()]
        self.images += int(valid.sum())

    def finish(self, result: ConditionResult, training: TrainingMoves, farthest: int) -> ConditionDiagnosis:
        """Return means over images, at the kept steps of a result.

        Args:
            result: of the same condition.
            training: whose bins moves are sorted into.
            farthest: the largest move in training along an axis, pixels.
        """
        means = {name: total / self.images for name, total in self.sums.items()}
        at = np.array(result.steps) - 1
        kept = {name: mean[at] for name, mean in means.items()}  # (S, L) or (S, L, H)
        by_step = {name: kept[name] for name in BY_LAYER}
        by_step["norm_sd"] = np.sqrt(np.maximum(kept["norm_squared"] - kept["norm"] ** 2, 0))
        by_step |= {name: kept[name].mean(2) for name in BY_HEAD}
        by_step["decay_sd"] = kept["decay"].std(2)
        by_step["left_least"], by_step["left_most"] = kept["left"].min(2), kept["left"].max(2)
        moves = np.concatenate(self.moves)  # (N (T - 1), 2)
        beyond = np.abs(moves).max(1, initial=0) > farthest
        return ConditionDiagnosis(
            result=result,
            images=self.images,
            by_step=by_step,
            means={name: means[name].mean(0) for name in BY_LAYER} | {"decay": means["decay"].mean((0, 2))},
            memory=means["left"].sum(0),
            moves=shares(moves, training.edges),
            moves_beyond_training=float(beyond.mean()) if len(moves) else 0.0,
        )


def move_edges(reach: int) -> np.ndarray:
    """Return the edges of the bins that moves of up to so many pixels fall into, along rows as along columns.

    All hold the same odd number of moves, and the middle one is around the zero move.
    """
    width = (2 * reach + 1) // BINS | 1
    beside = -(-(reach - width // 2) // width)  # bins on either side of the middle one
    return (np.arange(2 * beside + 2) - beside - 0.5) * width


def shares(moves: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return which share of moves (M, 2) falls into each bin: (R, R)."""
    return np.histogram2d(moves[:, 0], moves[:, 1], bins=[edges, edges])[0] / max(1, len(moves))


def training_moves(edges: np.ndarray, canvas: tuple[int, int], patch_size: int) -> TrainingMoves:
    """Return the same of training, in expectation: independent glimpses anywhere on canvases of all sides alike.

    Trajectories that keep to an image smaller than its canvas have shorter moves than these.

    Args:
        edges: of the bins.
        canvas: smallest and largest side, pixels.
        patch_size: side of a glimpse, pixels.
    """
    total = np.zeros((len(edges) - 1,) * 2)
    sides = range(canvas[0], canvas[1] + 1)
    for side in sides:
        starts = side - patch_size + 1
        move = np.arange(1 - starts, starts)
        likelihood = (starts - np.abs(move)) / starts**2  # of the difference of two uniform starts
        axis = np.histogram(move, edges, weights=likelihood)[0]
        total += np.outer(axis, axis) / len(sides)
    return TrainingMoves(edges, total)
