"""The scheduled loss: each prediction is pulled towards what can be known so far (paper section 3.2).

    p_t = (1 - r_t) * uniform + r_t * one_hot(y)
    loss = mean over images and steps of CE(p_t, softmax(z_t))
         = mean of  logsumexp(z_t) - r_t * z_t[y] - (1 - r_t) * mean(z_t)

The second form needs no dense target: it is label smoothing with epsilon = 1 - r_t.
"""

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["information_ratio", "none"]


def scheduled_cross_entropy(
    logits: Tensor, labels: Tensor, information_ratio: Tensor, schedule: Schedule = "information_ratio"
) -> Tensor:
    """Cross entropy of every step's prediction with its scheduled target, in float32 or wider.

    Args:
        logits: (B, T, C).
        labels: (B,) integers.
        information_ratio: (B, T), r_t in [0, 1].
        schedule: "none" is the paper's ablation: plain cross entropy at every step, r_t = 1.

    Returns:
        The mean over B x T, a scalar.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ratio = information_ratio.to(logits.dtype) if schedule == "information_ratio" else torch.ones_like(logits[..., 0])
    of_label = logits.gather(-1, labels[:, None, None].expand(*logits.shape[:2], 1)).squeeze(-1)  # (B, T)
    return (logits.logsumexp(-1) - ratio * of_label - (1 - ratio) * logits.mean(-1)).mean()
