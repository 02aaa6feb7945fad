"""
A run that resumes from a checkpoint and ends with the same weights and log as an uninterrupted one.

`checkpoints.py` chooses the checkpoint, `integrity.py` checks that it is intact, and `changes.py` that options and
data are the same. Streaming resumes like any other run: the Trainer skips the batches that were trained. It does not
read their images, because `data/streaming.py` lays out the order of an epoch in advance.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from training_tier.loop.integrity import find_fault, reading
from training_tier.loop.stopping import TrainingStopped
from training_tier.start.text_lora import has_text_lora, read_with_lora

logger = logging.get_logger(__name__)


class BestOfThisRun(TrainerCallback):
    """
    Finds the best checkpoint of a resumed run in the folder of the run. The Trainer's state names it by its whole
    path, which is wrong, or belongs to another run, once the folder was moved or copied.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not args.load_best_model_at_end or not state.best_global_step:
            return
        run, named = Path(args.output_dir), state.best_model_checkpoint
        own = run / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if named is not None and not own.is_dir():  # the best step was not saved
            own = run / Path(named).name
        resumed = Path(args.resume_from_checkpoint or run)
        if own.is_dir():
            state.best_model_checkpoint = str(own)
        elif named is not None and Path(named).resolve().parent != resumed.resolve().parent:
            logger.warning(
                f"The best checkpoint so far, of step {state.best_global_step}, is not in {run}: only later steps can "
                "be the best. To choose among all steps, copy it there and resume again."
            )
            state.best_model_checkpoint = state.best_global_step = state.best_metric = None


@contextlib.contextmanager
def loading_as_from_pretrained(model: nn.Module, checkpoint: str) -> Iterator[None]:
    """
    Inside the block, `model.load_state_dict` sets what `from_pretrained` reads of a checkpoint, if the file has other
    names than the model in memory, as for ViT and DINOv2. The Trainer (5.23) leaves such tensors as they are.
    """
    if not isinstance(model, PreTrainedModel):  # an adapter
        yield
        return
    plain = model.load_state_dict

    def load_state_dict(state_dict: Mapping, strict: bool = True) -> Any:
        if state_dict.keys() - model.state_dict().keys() and has_text_lora(model):
            state_dict = read_with_lora(model, state_dict)
        elif state_dict.keys() - model.state_dict().keys():
            state_dict = type(model).from_pretrained(checkpoint, use_safetensors=True).state_dict()
        return plain(state_dict, strict)

    model.load_state_dict = load_state_dict
    try:
        yield
    finally:
        del model.load_state_dict


class ResumingTrainer(Trainer):
    """[`Trainer`] whose log also continues, and that reports a damaged part of a checkpoint in one sentence."""

    def mean_training_loss(self) -> float:
        """Over all steps, including those before the run was resumed. Every process has to call this."""
        logged = [(entry["step"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        total, last = 0.0, 0
        for step, loss in logged:
            total, last = total + loss * (step - last), step
        unlogged = self.state.global_step - self._globalstep_last_logged
        if unlogged:
            total += self.accelerator.reduce(self._tr_loss, "mean").item()
        return total / max(last + unlogged, 1)

    def log_sums(self) -> dict:
        """The sums so far for the next log entry; JSON."""
        return {"loss": self._tr_loss.item(), "step": self._globalstep_last_logged}

    def restore_log_sums(self, sums: Mapping) -> None:
        self._tr_loss.fill_(sums["loss"])
        self._globalstep_last_logged = sums["step"]

    def log_sums_file(self, checkpoint: str) -> str:
        return os.path.join(checkpoint, f"log_sums_{self.args.process_index}.json")

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        with open(self.log_sums_file(output_dir), "w", encoding="utf-8") as file:
            json.dump(self.log_sums(), file)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading("random state", checkpoint):
            super()._load_rng_state(checkpoint)
        if checkpoint is not None and os.path.isfile(file := self.log_sums_file(checkpoint)):
            with reading("log", checkpoint):
                self.restore_log_sums(json.loads(Path(file).read_text(encoding="utf-8")))

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # transformers (5.23) compares these options with the numbers of steps in the checkpoint: 0.1 with 12, say
        shares = {name: getattr(self.args, name) for name in ("logging_steps", "eval_steps", "save_steps")}
        shares = {name: share for name, share in shares.items() if share is not None and share < 1}
        for name, share in shares.items():
            setattr(self.args, name, math.ceil(max_steps * share))
        try:
            return super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            for name, share in shares.items():
                setattr(self.args, name, share)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with reading("weights", resume_from_checkpoint), self._loading(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading("optimizer or scheduler", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading("gradient scaler", checkpoint):
            super()._load_scaler(checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if fault := find_fault(best, self.args.save_only_model):
            raise TrainingStopped(
                f"The training is complete, but its best checkpoint {best} is not whole: {fault}. To end with the "
                "last weights instead, delete it and add --resume_from_checkpoint last.",
                in_all_processes=True,
            )
        with self._loading(self.model, best):
            super()._load_best_model()

    def _loading(self, model: nn.Module, checkpoint: str) -> contextlib.AbstractContextManager[None]:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # these have formats of their own
            return contextlib.nullcontext()
        return loading_as_from_pretrained(model, checkpoint)
