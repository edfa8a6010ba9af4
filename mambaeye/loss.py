"""The scheduled loss: each prediction is pulled towards what can be known so far (paper section 3.2).

    p_t = (1 - r_t) * uniform + r_t * one_hot(y)
    loss = mean over images and steps of CE(p_t, softmax(z_t))
         = mean of  logsumexp(z_t) - r_t * z_t[y] - (1 - r_t) * mean(z_t)

The second form needs no dense target: it is label smoothing with epsilon = 1 - r_t.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaeye.ops.precision import no_autocast, wide

Schedule = Literal["information_ratio", "none"]
LOGITS_AT_ONCE = 1 << 20  # numbers; 4 MiB in float32


def scheduled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    information_ratio: Tensor,
    schedule: Schedule = "information_ratio",
    valid: Tensor | None = None,
    partner_labels: Tensor | None = None,
    label_shares: Tensor | None = None,
    image_weights: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of every step's prediction with its scheduled target, in float32 or wider.

    Args:
        logits: (B, T, C).
        labels: (B,) integers.
        information_ratio: (B, T), r_t in [0, 1].
        schedule: "none" is the paper's ablation: plain cross entropy at every step, r_t = 1.
        valid: (B,) bool; rows that are False are left out of the mean. All are valid by default.
        partner_labels: (B,) integers, of images that were mixed in: one_hot(y) above becomes a mix of two.
        label_shares: (B,) in [0, 1], share of `labels` in that mix.
        image_weights: (B,), what every image's loss is multiplied with; see class_weights.

    Returns:
        The mean over valid images and T, a scalar; 0 if no image is valid.
    """
    of_image = step_losses(logits, labels, information_ratio, schedule, partner_labels, label_shares).mean(1)  # (B,)
    if image_weights is not None:
        of_image = of_image * image_weights
    if valid is None:
        return of_image.mean()
    return (of_image * valid).sum() / valid.sum().clamp(min=1)


def step_losses(
    logits: Tensor,
    labels: Tensor,
    information_ratio: Tensor,
    schedule: Schedule = "information_ratio",
    partner_labels: Tensor | None = None,
    label_shares: Tensor | None = None,
) -> Tensor:
    """Return the loss of every image and step, (B, T). Arguments as for scheduled_cross_entropy."""
    logits = logits.to(wide(logits.dtype))
    ratio = information_ratio.to(logits.dtype) if schedule == "information_ratio" else torch.ones_like(logits[..., 0])
    of_label = logits_of(logits, labels)
    if partner_labels is not None and label_shares is not None:
        of_label = torch.lerp(logits_of(logits, partner_labels), of_label, label_shares.to(logits.dtype)[:, None])
    return logits.logsumexp(-1) - ratio * of_label - (1 - ratio) * logits.mean(-1)


def scheduled_cross_entropy_of_features(
    features: Tensor,
    head: nn.Linear,
    labels: Tensor,
    information_ratio: Tensor,
    schedule: Schedule = "information_ratio",
    valid: Tensor | None = None,
    partner_labels: Tensor | None = None,
    label_shares: Tensor | None = None,
    image_weights: Tensor | None = None,
) -> Tensor:
    """Return scheduled_cross_entropy of the head's answers to features, without the logits of all steps at once.

    The steps are taken in pieces, and each piece's gradient is computed with its value, so that the memory for logits
    does not grow with T and nothing is computed twice. Logits, softmax and their gradients are float32 or wider,
    whatever the autocast and the dtypes of features and head.

    Args:
        features: (B, T, D).
        head: D -> C, with a bias.
        labels, information_ratio, schedule, valid, partner_labels, label_shares, image_weights: as for
            scheduled_cross_entropy.
    """
    steps = features.shape[1]
    ratio = information_ratio if schedule == "information_ratio" else torch.ones_like(information_ratio)
    valid = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
    if partner_labels is None or label_shares is None:
        partner_labels, label_shares = labels, torch.ones_like(ratio[:, 0])
    of_image = valid.to(wide(features.dtype)) / (valid.sum().clamp(min=1) * steps)  # (B,): the weight of its steps
    if image_weights is not None:
        of_image = of_image * image_weights.to(of_image.dtype)
    rows = (t.repeat_interleave(steps) for t in (labels, partner_labels, label_shares, of_image))
    loss: Tensor = _LossOfFeatures.apply(  # type: ignore[no-untyped-call]
        features.flatten(0, 1), head.weight, head.bias, ratio.flatten(), *rows
    )
    return loss


class _LossOfFeatures(torch.autograd.Function):
    """The loss of M rows and its gradients, some rows at a time. Letters: M = B T rows, D features, C classes.

    A row's weight is about 1 / M, and a gradient scaler comes only in the backward pass. Until then everything is kept
    times a power of two of about M, so that the gradient of features in fp16 is in that format's range; being a power
    of two, it changes no digit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        ratio: Tensor,
        labels: Tensor,
        partners: Tensor,
        shares: Tensor,
        row_weights: Tensor,
    ) -> Tensor:
        """features (M, D), weight (C, D), bias (C,), all others (M,) -> scalar."""
        classes, dtype = weight.shape[0], wide(features.dtype)
        ctx.scale = scale = 2.0 ** len(features).bit_length()
        loss = torch.zeros((), dtype=dtype, device=features.device)
        wide_weight, wide_bias = weight.to(dtype), bias.to(dtype)
        g_features = torch.empty_like(features)
        g_weight, g_bias = torch.zeros_like(wide_weight), torch.zeros_like(wide_bias)
        at_once = max(1, LOGITS_AT_ONCE // classes)
        with no_autocast(features.device):
            for first in range(0, len(features), at_once):
                rows = slice(first, first + at_once)
                x, r, w = (part.to(dtype) for part in (features[rows], ratio[rows, None], row_weights[rows, None]))
                w = w * scale
                to_label, to_partner = r * shares[rows, None].to(dtype), r * (1 - shares[rows, None].to(dtype))
                label, partner = labels[rows, None], partners[rows, None]
                logits = F.linear(x, wide_weight, wide_bias)  # (m, C)
                normalizer = logits.logsumexp(1, keepdim=True)  # (m, 1)
                expected = to_label * logits.gather(1, label) + to_partner * logits.gather(1, partner)
                expected += (1 - r) * logits.mean(1, keepdim=True)
                loss += (w * (normalizer - expected)).sum()
                # the gradient of the logits: softmax minus the target, weighted
                g = logits.sub_(normalizer).exp_().sub_((1 - r) / classes)
                g.scatter_add_(1, label, -to_label).scatter_add_(1, partner, -to_partner).mul_(w)
                g_features[rows] = g @ wide_weight
                g_weight += g.T @ x
                g_bias += g.sum(0)
        ctx.save_for_backward(g_features, g_weight, g_bias)
        ctx.dtypes = features.dtype, weight.dtype, bias.dtype
        return loss / scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_loss: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients are ready; they are scaled by that of the loss, in its own dtype, and then rounded."""
        factor = (g_loss / ctx.scale).view(1)  # with an axis: a scalar would be rounded to the gradients' dtype first
        gradients = (
            torch.mul(g, factor, out=torch.empty_like(g, dtype=dtype))
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None, None, None


def class_weights(images: Tensor) -> Tensor:
    """Return weights of classes under which each counts as much as another, whatever the number of its images.

    Over all images the mean of their classes' weights is 1, so that the loss keeps its size.

    Args:
        images: (C,) integers, of every class.

    Returns:
        (C,) float32: all images / (classes that have some * those of the class); 0 without images.
    """
    some = images > 0
    return (images.sum() / (some.sum() * images.clamp(min=1)) * some).float()


def weights_of_images(of_class: Tensor, labels: Tensor, partner_labels: Tensor, label_shares: Tensor) -> Tensor:
    """Return the weight of every image, (B,): that of its class, or of two that were mixed, by their shares."""
    of_class = of_class.to(labels.device)
    return torch.lerp(of_class[partner_labels], of_class[labels], label_shares)


def logits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return every step's logit of the image's label: logits (B, T, C), labels (B,) -> (B, T)."""
    return logits.gather(-1, labels[:, None, None].expand(*logits.shape[:2], 1)).squeeze(-1)
