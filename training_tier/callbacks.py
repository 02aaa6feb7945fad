"""What happens at fixed points of a training."""

import contextlib
import math
import signal
import threading
from collections.abc import Iterator

from transformers import TrainerCallback

MAX_LOGIT_SCALE = math.log(100)  # Radford et al. 2021, section 2.5
PREEMPTED = 128 + signal.SIGTERM  # exit code, as shells tell of a program that SIGTERM has ended


class TrainingStopped(RuntimeError):
    """
    A run that cannot go on, or has to make room. The message is one sentence for the user.

    Args:
        message (`str`): what happened, what is left, and what to do.
        exit_code (`int`, *optional*, defaults to 1): with which the program should end.
        in_all_processes (`bool`, *optional*, defaults to `False`): raised in each, so that one of them may tell.
    """

    def __init__(self, message: str, exit_code: int = 1, in_all_processes: bool = False):
        super().__init__(message)
        self.exit_code = exit_code
        self.in_all_processes = in_all_processes


class LogitScaleClamp(TrainerCallback):
    """Keeps the factor of the cosines at 100 or below after each step, without which CLIP's training is unstable."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)


class EpochSetter(TrainerCallback):
    """Tells the data set which epoch it is, also where accelerate does not (several processes)."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # the tolerance: in a resumed run the epoch is a sum of fractions
        train_dataloader.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class SaveAfterEvaluation(TrainerCallback):
    """
    Puts what is saved in the last step of an epoch off until its evaluation is done, which a run that is resumed from
    there would leave out.
    """

    def __init__(self):
        self.postponed = False

    def on_step_end(self, args, state, control, **kwargs):
        self.postponed = control.should_save and (not state.epoch % 1 or state.global_step >= state.max_steps)
        control.should_save = control.should_save and not self.postponed

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = control.should_save or self.postponed
        self.postponed = False


class Preemption(TrainerCallback):
    """
    Saves and stops at the end of the step in which SIGTERM comes, or of the next; later calls to stop, and those in
    the very last step, change nothing.

    Not `enable_jit_checkpoint` of transformers 5.23: that waits for 3 s, lets each process decide for itself, may save
    within a step, evaluates before it ends, and ends as if the training were complete.
    """

    def __init__(self):
        self.requested = False  # of this process
        self.agreed = False  # of all, in the same step

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM as a request, where this is the main thread, which alone may."""
        self.requested = self.agreed = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request(signum, frame):
            self.requested = True

        before = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def due(self, state) -> bool:
        return self.agreed and state.global_step < state.max_steps

    def on_step_end(self, args, state, control, **kwargs):
        if self.due(state):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.due(state):
            raise TrainingStopped(
                f"Stopped by SIGTERM at step {state.global_step} of {state.max_steps}, saved as "
                f"{args.output_dir}/checkpoint-{state.global_step}; go on with --resume_from_checkpoint last.",
                exit_code=PREEMPTED,
                in_all_processes=True,
            )
