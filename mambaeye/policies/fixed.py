"""Fixed scans as a policy: what the data planned, whatever is seen."""

from torch import Tensor

from mambaeye.policies.base import Observation, Policy


class FixedScan(Policy):
    """Follows the trajectory that the data's scan drew beforehand: everything is decided at once.

    A rollout asks it nothing, and takes the plan as it is.
    """

    def act(self, seen: Observation, count: int) -> Tensor:
        return seen.planned[:, seen.step : seen.step + count]
