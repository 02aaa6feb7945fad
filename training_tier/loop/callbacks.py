"""What happens at fixed points of a training."""

import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from modeling_tier.modeling_tier import TierModelMixin
from training_tier.data.text_lengths import padded_lengths
from training_tier.loop.checkpoints import list_checkpoints, rank_checkpoints

logger = logging.get_logger(__name__)

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


# Dense 16-bit matrix products, floating-point operations per second; from the makers' data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
}


def peak_flops(device_name: str) -> float | None:
    """Operations per second of a GPU by its name (the longest that fits); `None` for one that is not known."""
    words = f" {device_name.replace('-', ' ')} "
    names = [name for name in PEAK_FLOPS if f" {name} " in words]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def training_flops(model: torch.nn.Module, inputs: dict) -> float:
    """
    Floating-point operations of one pair in training: three times those of a forward pass, as is usual, whatever is
    frozen or computed twice. A multiplication and an addition are two; causal attention counts as full.

    Args:
        model (`torch.nn.Module`): in any mode; nothing random is drawn and no statistics change.
        inputs (`dict`): one pair.
    """
    was_training = model.training
    model.eval()
    # not every fused kernel is counted (on CPUs, none is): attention as plain products, which are the same number
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    model.train(was_training)
    return 3.0 * counter.get_total_flops()


def flops_by_length(model: torch.nn.Module, pair: dict) -> np.ndarray:
    """
    [`training_flops`] of a pair whose text has L tokens, padding among them, as the coefficients of 1, L and L^2:
    layers go with L, and attention also with L^2. Counted for three short texts.

    Args:
        model (`torch.nn.Module`): see there.
        pair (`dict`): tensors of one row each; without `input_ids` the last two coefficients are 0.
    """
    if "input_ids" not in pair:
        return np.array([training_flops(model, pair), 0, 0])
    tokens, lengths = pair["input_ids"].shape[1], (4, 8, 12)
    counts = []
    for length in lengths:
        # the first token again and again, and at the end the last one that is attended to
        inputs = {
            name: value[:, :1].expand(1, length).clone() if value.shape[1:] == (tokens,) else value
            for name, value in pair.items()
        }
        end = pair["attention_mask"][0].nonzero().max() if "attention_mask" in pair else -1
        inputs["input_ids"][:, -1] = pair["input_ids"][:, end]
        counts.append(training_flops(model, inputs))
    return np.linalg.solve(np.vander(lengths, increasing=True), counts)


class Throughput(TrainerCallback):
    """
    What the log says of speed, of training alone, without evaluation and saving: `images_per_second` of all processes,
    `data_wait` (share of the time in which a step waits for its batch), `tflops` (10^12 operations of the model per
    second and process, for texts as long as they were padded to) and, in 16 bits on a GPU of `PEAK_FLOPS`, `mfu`,
    their share of what it can do.

    Args:
        group_texts (`bool`, *optional*, defaults to `False`): whether texts are padded as by [`read_by_length`].
    """

    def __init__(self, group_texts: bool = False):
        self.group_texts = group_texts
        self.example: dict | None = None  # one pair
        self.flops: np.ndarray | None = None  # see flops_by_length
        self.clear()

    def clear(self) -> None:
        self.pairs = np.zeros(3)  # sums over the pairs of 1, L and L^2 for texts of L tokens
        self.seconds, self.waited = 0.0, 0.0

    def on_batch_wait(self) -> None:
        self.started = time.perf_counter()

    def on_batches(self, batches: Sequence[dict]) -> None:
        self.waited += time.perf_counter() - self.started
        for batch in batches:
            lengths = np.zeros(len(batch["pixel_values"]))
            if "input_ids" in batch and self.group_texts:
                lengths = padded_lengths(batch["attention_mask"]).cpu().numpy()
            elif "input_ids" in batch:
                lengths += batch["input_ids"].shape[1]
            self.pairs += np.vander(lengths, 3, increasing=True).sum(axis=0)
        if self.example is None and batches:
            self.example = {name: value[:1] for name, value in batches[0].items() if torch.is_tensor(value)}

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.started

    def pop(self, model: torch.nn.Module, processes: int, half_precision: bool) -> dict[str, float]:
        """The entries of the log since the last call."""
        if not self.seconds:
            return {}
        if self.flops is None:
            self.flops = flops_by_length(model, {k: v.to(model.device) for k, v in self.example.items()})
        flops = float(self.flops @ self.pairs) / self.seconds
        logs = {
            "images_per_second": float(self.pairs[0]) / self.seconds * processes,
            "data_wait": self.waited / self.seconds,
            "tflops": flops / 1e12,
        }
        if half_precision and model.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(model.device))
            if peak is not None:
                logs["mfu"] = flops / peak
        self.clear()
        return logs


class TopCheckpoints(TrainerCallback):
    """
    Deletes, after each save, all checkpoints but the best ones and the latest, which resuming needs.

    Args:
        count (`int`): how many are kept for being the best by `metric_for_best_model`.
    """

    def __init__(self, count: int):
        self.count = count

    def on_save(self, args, state, control, **kwargs):
        if not args.should_save:  # another process does
            return
        checkpoints = list_checkpoints(args.output_dir)
        ranked = rank_checkpoints(checkpoints, state.log_history, args.metric_for_best_model, args.greater_is_better)
        kept = {step for step, _ in ranked[: self.count]} | {max(checkpoints, default=None)}
        for step in checkpoints.keys() - kept:
            shutil.rmtree(checkpoints[step], ignore_errors=True)


class BestOfThisRun(TrainerCallback):
    """
    Finds the best checkpoint of a resumed run in the run's own folder. The log of a run names it by its whole path,
    which is wrong, or another run's, once the folder has been moved or copied.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if not args.load_best_model_at_end or not state.best_global_step:
            return
        run, named = Path(args.output_dir), state.best_model_checkpoint
        own = run / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if named is not None and not own.is_dir():  # a better step than the best that was saved
            own = run / Path(named).name
        resumed = Path(args.resume_from_checkpoint or run)
        if own.is_dir():
            state.best_model_checkpoint = str(own)
        elif named is not None and Path(named).resolve().parent != resumed.resolve().parent:
            logger.warning(
                f"The best checkpoint so far, of step {state.best_global_step}, is not in {run}: the best one of the "
                "steps to come is taken. To choose among all, copy it there and resume again."
            )
            state.best_model_checkpoint = state.best_global_step = state.best_metric = None


class EntropyWarmup(TrainerCallback):
    """
    Lets the weights of the two entropies grow linearly from 0, in the first step, to those of the configuration.

    Args:
        steps (`float`): after so many steps they are reached; below 1, after this share of all steps.
    """

    def __init__(self, steps: float):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        steps = self.steps if self.steps >= 1 else math.ceil(self.steps * state.max_steps)
        for module in model.modules():
            if isinstance(module, TierModelMixin):
                module.entropy_scale = min(1.0, state.global_step / steps)


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
