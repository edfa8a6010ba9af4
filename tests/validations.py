"""Small validations, measured for real on random logits, for tests of what draws and writes them."""

import torch

from mambaeye.batch import EvaluationCondition
from mambaeye.evaluation.early_exit import EarlyExitMetrics, EarlyExitState, Rule
from mambaeye.evaluation.metrics import StepMetrics, condition_result, reported_steps
from mambaeye.evaluation.result import ValidationResult

CLASSES, BINS = 10, 15
SURE = [Rule("confidence", 0.3), Rule("confidence", 0.6)]
RULES = [*SURE, Rule("stable", 2), Rule("entropy", 1.5), Rule("value", 0.5)]


def validation(
    resolutions: tuple[int, ...] = (32, 48),
    scans: tuple[str, ...] = ("random",),
    num_glimpses: int = 9,
    answers_at: tuple[int, ...] | None = None,
    rules: list[Rule] | None = None,
    images: int = 30,
    seed: int = 0,
) -> ValidationResult:
    """Return what 30 images measure whose logits lean the more to their labels the more was seen of them.

    Args:
        resolutions: canvas sides.
        scans: names; both together are the conditions.
        num_glimpses: T.
        answers_at: glimpse counts after which there are answers, the last T among them; all by default.
        rules: for exiting early.
        images: how many.
        seed: of the logits.
    """
    draw = torch.Generator().manual_seed(seed)
    answers = tuple(range(1, num_glimpses + 1)) if answers_at is None else answers_at
    conditions, exits = [], []
    for condition in (EvaluationCondition(resolution, scan) for resolution in resolutions for scan in scans):
        labels = torch.randint(CLASSES, (images,), generator=draw)
        ratio = torch.rand(images, len(answers), generator=draw).cumsum(1) / len(answers)
        logits = torch.randn(images, len(answers), CLASSES, generator=draw)
        logits += 4 * ratio[..., None] * torch.nn.functional.one_hot(labels, CLASSES)[:, None]
        valid = torch.ones(images, dtype=torch.bool)
        metrics = StepMetrics(num_glimpses, answers_at=answers)
        metrics.update(logits, labels, ratio, valid, answers[0] - 1)
        report_at = reported_steps(num_glimpses, (), answers)
        conditions.append(condition_result(condition, metrics.finish(), CLASSES, report_at))
        if rules:
            state = EarlyExitState(rules, images, logits)
            state.update(logits, value=1 - ratio)  # the less is left to see, the less is expected
            early = EarlyExitMetrics(rules, BINS)
            early.update(state, labels, ratio, valid)
            exits += early.results(condition)
    return ValidationResult(conditions, exits, {"resize": "fit"})
