"""How long a training takes: an estimate from its first steps, and its progress in a log."""

import logging
import math
import time
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from processing_tier.progress import PlainLines, between_bars, describe_seconds
from training_tier.loop.trial_step import time_trial_step

logger = logging.getLogger(__name__)

TRIED_STEPS = 15  # fewer are not worth a trial, which takes about two
MEASURED_STEPS = 5  # of which the estimate is made, after a first one, in which caches and kernels warm up


class TimeLeft(TrainerCallback):
    """
    Tells before the first step how many steps a training has and how long they take, by a trial; after six steps how
    long the rest takes, by those; and after the next evaluation the same with the evaluations.
    """

    def __init__(self) -> None:
        self.first_step = 0
        self.seconds, self.steps = 0.0, 0  # of the measured steps, without evaluations and saving
        self.mark: float | None = None  # when a step, an evaluation or a save ended
        self.is_evaluated = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        self.first_step, self.seconds, self.steps = state.global_step, 0.0, 0
        self.mark, self.is_evaluated = None, False
        left, evaluations = state.max_steps - self.first_step, count_evaluations(args, state)
        pace = time_trial_step(model, train_dataloader, args) if left >= TRIED_STEPS else None
        told = (
            f"Training: {counted(state.num_train_epochs, 'epoch')}, {counted(state.max_steps, 'step')} of "
            f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size:,} images"
            + (f", of which {self.first_step:,} are done." if self.first_step else ".")
        )
        if pace is not None:
            told += f" About {describe_seconds(left * pace)}: {pace:.2g} s each in a trial on the first images" + (
                f", without {counted(evaluations, 'evaluation')}." if evaluations else "."
            )
        if left > MEASURED_STEPS + 1:
            estimate = "an estimate of the time" if pace is None else "a better estimate"
            told += f" After {MEASURED_STEPS + 1} steps, {estimate} follows."
        self.tell(state, told)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.perf_counter()
        if self.mark is not None and state.global_step > self.first_step + 1:
            self.seconds += now - self.mark
            self.steps += 1
        self.mark = now
        left = state.max_steps - state.global_step
        if self.steps != MEASURED_STEPS or not left:
            return
        pace = self.seconds / self.steps
        evaluations = count_evaluations(args, state)
        self.tell(
            state,
            f"The other {counted(left, 'step')} will take about {describe_seconds(left * pace)}: {pace:.2g} s each, "
            f"estimated from {self.steps} steps"
            + (f", without {counted(evaluations, 'evaluation')}" if evaluations else "")
            + (". Early stopping may end it sooner." if args.early_stopping_patience is not None else "."),
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = time.perf_counter()
        left, evaluations = state.max_steps - state.global_step, count_evaluations(args, state)
        if self.steps >= MEASURED_STEPS and not self.is_evaluated and left:
            self.is_evaluated = True
            once = now - self.mark
            total = left * self.seconds / self.steps + evaluations * once
            self.tell(
                state,
                f"About {describe_seconds(total)} left: {counted(left, 'step')}, and "
                f"{counted(evaluations, 'evaluation')} of {describe_seconds(once)} each.",
            )
        self.mark = now

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.mark = time.perf_counter()

    def tell(self, state: TrainerState, sentence: str) -> None:
        if state.is_world_process_zero:
            with between_bars():
                logger.info(sentence)


def count_evaluations(args: TrainingArguments, state: TrainerState) -> int:
    """The evaluations that follow."""
    if args.eval_strategy == "epoch":
        return state.num_train_epochs - math.floor((state.epoch or 0) + 1e-6)
    if args.eval_strategy == "steps" and state.eval_steps:
        return state.max_steps // state.eval_steps - state.global_step // state.eval_steps
    return 0


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class ProgressInLog(TrainerCallback):
    """Replaces the bars of the library's `ProgressCallback` by plain lines, see [`PlainLines`]."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.lines = PlainLines(None, "training", "step", state.max_steps, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.lines.update(state.global_step - self.lines.n)
