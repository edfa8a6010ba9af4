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
    logits: Tensor,
    labels: Tensor,
    information_ratio: Tensor,
    schedule: Schedule = "information_ratio",
    valid: Tensor | None = None,
    partner_labels: Tensor | None = None,
    label_shares: Tensor | None = None,
) -> Tensor:
    """Cross entropy of every step's prediction with its scheduled target, in float32 or wider.

    Args:
        logits: (B, T, C).
        labels: (B,) integers.
        information_ratio: (B, T), r_t in [0, 1].
        schedule: "none" is the paper's ablation: plain cross entropy at every step, r_t = 1.
        valid: (B,) bool; rows that are False are left out of the mean. All are valid by default.
        partner_labels: (B,) integers, of images that were mixed in: one_hot(y) above becomes a mix of two.
        label_shares: (B,) in [0, 1], share of `labels` in that mix.

    Returns:
        The mean over valid images and T, a scalar; 0 if no image is valid.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    ratio = information_ratio.to(logits.dtype) if schedule == "information_ratio" else torch.ones_like(logits[..., 0])
    of_label = logits_of(logits, labels)
    if partner_labels is not None and label_shares is not None:
        of_label = torch.lerp(logits_of(logits, partner_labels), of_label, label_shares.to(logits.dtype)[:, None])
    of_image = (logits.logsumexp(-1) - ratio * of_label - (1 - ratio) * logits.mean(-1)).mean(1)  # (B,)
    if valid is None:
        return of_image.mean()
    return (of_image * valid).sum() / valid.sum().clamp(min=1)


def logits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Every step's logit of the image's label: logits (B, T, C), labels (B,) -> (B, T)."""
    return logits.gather(-1, labels[:, None, None].expand(*logits.shape[:2], 1)).squeeze(-1)
