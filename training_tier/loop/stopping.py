"""
Ends a run before its last step: SIGTERM, a loss or gradient that is not finite, too many images that do not
decode, the death of another process.

Early stopping by a metric is transformers' `EarlyStoppingCallback`, which `trainer.py` adds.
"""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evaluation_tier.models.images import MAX_UNREADABLE
from training_tier.loop.checkpoints import describe_last_checkpoint

PREEMPTED = 128 + signal.SIGTERM  # exit code, as shells report a program that SIGTERM has ended

PEER_ERRORS = ("closed by peer", "reset by peer", "Broken pipe")  # messages of gloo, which has no error class


class TrainingStopped(RuntimeError):
    """
    A run that cannot continue, or that was asked to stop. The message is one sentence for the user.

    Args:
        message (`str`): the event, the last checkpoint, and the remedy.
        exit_code (`int`, *optional*, defaults to 1): the exit code of the program.
        in_all_processes (`bool`, *optional*, defaults to `False`): every process raises it, so one can report it.
    """

    def __init__(self, message: str, exit_code: int = 1, in_all_processes: bool = False):
        super().__init__(message)
        self.exit_code = exit_code
        self.in_all_processes = in_all_processes


def is_peer_error(error: Exception) -> bool:
    """Whether a collective operation failed, as it does when another process has died."""
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in PEER_ERRORS)


class Preemption(TrainerCallback):
    """
    Saves and stops at the end of the step in which SIGTERM comes, or of the next one. Further signals, and one in the
    last step, have no effect.

    It replaces `enable_jit_checkpoint` of transformers 5.23, which waits for 3 s, lets each process decide alone, may
    save within a step, evaluates before it ends, and ends as if the training were complete.
    """

    def __init__(self) -> None:
        self.requested = False  # this process received the signal
        self.agreed = False  # all processes know, in the same step

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles SIGTERM inside the block. Only the main thread can; in another one this does nothing."""
        self.requested = self.agreed = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(signum: int, frame: FrameType | None) -> None:
            self.requested = True

        before = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def due(self, state: TrainerState) -> bool:
        return self.agreed and state.global_step < state.max_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.due(state):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.due(state):
            raise TrainingStopped(
                f"SIGTERM stopped the run at step {state.global_step} of {state.max_steps}. The checkpoint is "
                f"{args.output_dir}/checkpoint-{state.global_step}; resume with --resume_from_checkpoint last.",
                exit_code=PREEMPTED,
                in_all_processes=True,
            )


class StoppingTrainer(Trainer):
    """[`Trainer`] whose processes agree in each step on whether to stop, and stop with one sentence."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preemption = Preemption()  # the subclass adds it to its callbacks, whose order counts
        self.unreadable: dict[int, tuple[str, str]] = {}  # training record to image id and reason, in this process
        self._new_unreadable = False
        self._step_image_ids: list[str] = []

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """
        Raises:
            `TrainingStopped`: on SIGTERM, as [`check_step`] does, or when another process has died.
        """
        with self.preemption.listening():
            try:
                yield
            except TrainingStopped:
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # closes the logs
                raise
            except RuntimeError as error:
                if self.args.world_size == 1 or not is_peer_error(error):
                    raise
                raise TrainingStopped(
                    f"Process {self.args.process_index} stops after step {self.state.global_step}, because another "
                    f"process has ended ({str(error).splitlines()[0]}); "
                    f"{describe_last_checkpoint(self.args.output_dir)}."
                ) from error

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        self.pop_reports(inputs)
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def pop_reports(self, inputs: dict) -> None:
        """
        Takes the collator's reports out of a training batch and remembers them: the image ids, and the images that do
        not decode.
        """
        self._step_image_ids.extend(inputs.pop("image_ids", ()))
        inputs.pop("indices", None)
        for index, image_id, error in inputs.pop("unreadable", ()):
            self._new_unreadable = self._new_unreadable or index not in self.unreadable
            self.unreadable[index] = (image_id, error)

    def check_unreadable(self) -> None:
        """
        Counts the training images that did not decode in any process. Every process has to call this.

        Raises:
            `ValueError`: there are too many.
        """
        if self.args.world_size > 1:
            self.unreadable = dict(gather_object(list(self.unreadable.items())))
        self._new_unreadable = False
        if len(self.unreadable) > MAX_UNREADABLE * len(self.train_dataset):
            raise ValueError(
                f"At least {len(self.unreadable)} of {len(self.train_dataset)} training images do not decode, more "
                f"than 1 %: repair or remove them. The last one: {list(self.unreadable.values())[-1][1]}"
            )

    def _get_grad_norm(
        self, model: torch.nn.Module, grad_norm: torch.Tensor | float | None = None
    ) -> torch.Tensor | float | None:
        # the only place between the loss of a step and the update of the weights where both numbers are known
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.check_step(grad_norm)
        return grad_norm

    def find_excessive_settings(self, bad_loss: bool) -> str | None:
        """
        The settings of the loss, with their values, if they and not the images made it or its gradient not finite.
        Every process has to call this.
        """
        return None

    def check_step(self, grad_norm: torch.Tensor | float | None) -> None:
        """
        Agrees with the other processes, in one reduction, on whether SIGTERM has come, whether loss and gradient are
        finite, and whether to count the images that do not decode.

        Args:
            grad_norm (`torch.Tensor` or `float`, *optional*): of this step; ignored with a gradient scaler, which
                skips steps whose gradients are not finite.

        Raises:
            `TrainingStopped`: the loss or the gradient is not finite.
            `ValueError`: see [`check_unreadable`].
        """
        image_ids, self._step_image_ids = self._step_image_ids, []
        scaled = getattr(self.accelerator, "scaler", None) is not None
        norm = 0.0 if grad_norm is None or scaled else float(grad_norm)
        loss = self._tr_loss.item()  # the sum since the last log; earlier steps were finite
        flags = [not math.isfinite(loss), not math.isfinite(norm), self.preemption.requested, self._new_unreadable]
        if self.args.world_size > 1:
            flags = self.accelerator.reduce(self._tr_loss.new_tensor(flags), "sum").tolist()
        bad_loss, bad_gradient, self.preemption.agreed, new_unreadable = map(bool, flags)
        if new_unreadable:
            self.check_unreadable()
        if not bad_loss and not bad_gradient:
            return
        what = f"The {'loss' if bad_loss else 'gradient'} of step {self.state.global_step + 1} is not finite"
        if settings := self.find_excessive_settings(bad_loss):
            raise TrainingStopped(
                f"{what}, although its contrastive term is: lower the entropy weights, or raise the temperature "
                f"({settings}).",
                exit_code=2,
                in_all_processes=True,
            )
        if self.args.world_size > 1:
            image_ids = gather_object(image_ids)
        raise TrainingStopped(
            f"{what}; its images are {', '.join(image_ids)}, and {describe_last_checkpoint(self.args.output_dir)}. "
            "Check these images and their texts, or resume with a lower --learning_rate and --resume_changed true.",
            in_all_processes=True,
        )
