"""All that validation adds up under one condition, and what it answers to each image on the way."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, EvaluationCondition
from mambaeye.evaluation.early_exit import EarlyExitMetrics, EarlyExitState, Rule
from mambaeye.evaluation.metrics import (
    MOST_CLASSES,
    ConfusionMetric,
    MetricsConfig,
    StepMetrics,
    best_classes,
    condition_result,
    reported_steps,
)
from mambaeye.evaluation.result import ConditionResult, EarlyExitResult
from mambaeye.ops.precision import wide
from mambaeye.rollout import Step


class ConditionSums(nn.Module):
    """Metrics by step, by class and by rule for exiting early, which one walk over a batch updates together.

    As a part of a module they go to its device, and leave nothing in its state_dict.

    Args:
        condition: whose images are counted.
        num_classes: C; of more than MOST_CLASSES there is no confusion matrix.
        num_glimpses: T, glimpses of an image.
        config: which steps are kept, and how finely.
        report_at: glimpse counts that are reported besides powers of two and the last.
        answers_at: glimpse counts after which there are answers; all by default.
        rules: for exiting early.
    """

    def __init__(
        self,
        condition: EvaluationCondition,
        num_classes: int,
        num_glimpses: int,
        config: MetricsConfig = MetricsConfig(),
        report_at: Sequence[int] = (),
        answers_at: Sequence[int] | None = None,
        rules: Sequence[Rule] = (),
    ) -> None:
        super().__init__()
        self.condition, self.num_classes, self.rules = condition, num_classes, rules
        self.first_answer = answers_at[0] - 1 if answers_at else 0  # index of its glimpse
        self.reported = reported_steps(num_glimpses, report_at, answers_at)
        self.by_step = StepMetrics(num_glimpses, config, report_at, answers_at)
        self.by_class = ConfusionMetric(num_classes) if num_classes <= MOST_CLASSES else None
        self.by_rule = EarlyExitMetrics(rules, config.bins) if rules else None

    def update(self, walk: Iterable[Step], batch: CanvasBatch) -> dict[str, Tensor]:
        """Add a batch, and return what was answered to its B images.

        Args:
            walk: over the batch.
            batch: whose rows that are not valid are not counted; they are answered, too.

        Returns:
            logits: (B, C), the last answers.
            answers, confidence: (B, R), the likeliest class after each reported step, int64, and its probability.
        """
        state: EarlyExitState | None = None
        ratios, told = [], []
        for step in walk:
            assert step.information_ratio is not None
            self.by_step.update(step.logits, batch.labels, step.information_ratio, batch.valid, step.first)
            told += [answer_of(step.logits[:, at]) for at in self._reported_in(step)]
            if self.rules:
                state = state or EarlyExitState(self.rules, len(batch.labels), step.logits)
                state.update(step.logits, step.first, step.value)
                ratios.append(step.information_ratio)
        if self.by_rule is not None and state is not None:
            self.by_rule.update(state, batch.labels, torch.cat(ratios, dim=1), batch.valid, self.first_answer)
        last = step.logits[:, -1]  # (B, C)
        if self.by_class is not None:
            self.by_class.update(last, batch.labels, batch.valid)
        answers, confidence = (torch.stack(parts, dim=1) for parts in zip(*told, strict=True))  # (B, R) each
        return {"logits": last, "answers": answers, "confidence": confidence}

    def _reported_in(self, step: Step) -> list[int]:
        """Return the places of reported steps among some answers."""
        places = (reported - 1 - step.first for reported in self.reported)
        return [place for place in places if 0 <= place < step.logits.shape[1]]

    def finish(self) -> tuple[ConditionResult, list[EarlyExitResult]]:
        """Return what was measured on all ranks, one result for each rule among it, then begin anew."""
        confusion = None if self.by_class is None else self.by_class.finish()
        curves = self.by_step.finish()
        result = condition_result(self.condition, curves, self.num_classes, self.reported, confusion)
        return result, [] if self.by_rule is None else self.by_rule.results(self.condition)

    def reset(self) -> None:
        """Begin anew."""
        for metric in (self.by_step, self.by_class, self.by_rule):
            if metric is not None:
                metric.reset()


def answer_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest class (B,) int64 by logits (B, C), and its probability (B,)."""
    logits = logits.to(wide(logits.dtype))
    answers = best_classes(logits)[:, :1]
    return answers[:, 0], logits.softmax(-1).gather(-1, answers)[:, 0]
