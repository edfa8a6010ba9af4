"""The policy of fixed scans: what the data planned, whatever is seen."""

import sys

from torch import Tensor

from mambaeye.policies.base import Observation, Policy


class FixedScan(Policy):
    """Takes the trajectory that the data's scan drew beforehand: everything is decided at once."""

    horizon = sys.maxsize

    def act(self, seen: Observation, count: int) -> Tensor:
        return seen.planned[:, seen.step : seen.step + count]
