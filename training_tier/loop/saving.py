"""
Models and checkpoints on the disk, whole or absent, and their contents.

Old checkpoints are deleted here, by `--save_total_limit`; the best ones of `--save_top_k` are chosen in
`checkpoints.py`. Which of these files go to the Hub is in `hub.py`. How a checkpoint is checked before use is in
`integrity.py`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from processing_tier.records.identities import TrainedOn, write_trained_on
from training_tier.loop.checkpoints import last_checkpoint
from training_tier.loop.hub import HubTrainer
from training_tier.loop.integrity import RUN_OPTIONS, write_checksums
from training_tier.loop.stopping import TrainingStopped, is_peer_error
from training_tier.memory.sharding import whole_model

if TYPE_CHECKING:
    import optuna

UNFINISHED = "_saving"  # folder in output_dir of unfinished files; uploads leave "_*" out


class SaveAfterEvaluation(TrainerCallback):
    """
    Delays a save in the last step of an epoch until the epoch is evaluated. A run that resumed from the earlier
    checkpoint would skip that evaluation.
    """

    def __init__(self) -> None:
        self.postponed = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.postponed = control.should_save and (not state.epoch % 1 or state.global_step >= state.max_steps)
        control.should_save = control.should_save and not self.postponed

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_save = control.should_save or self.postponed
        self.postponed = False


@contextlib.contextmanager
def writing(what: str, output_dir: str) -> Iterator[None]:
    """Turns a failure to write, such as a full disk, into one sentence, and leaves nothing half-written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises the second, and safetensors the third
        if is_peer_error(error):
            raise
        shutil.rmtree(os.path.join(output_dir, UNFINISHED), ignore_errors=True)
        left = last_checkpoint(output_dir)
        raise TrainingStopped(
            f"{what} cannot be written to {output_dir!r} ({type(error).__name__}: {str(error).splitlines()[0]}). "
            + (
                f"Free some space and resume with --resume_from_checkpoint last ({left} is whole)."
                if left
                else "The run has not saved a checkpoint yet: free some space and start again."
            )
        ) from error


def sync(folder: str | os.PathLike) -> list[Path]:
    """Waits until the files in a folder are on the disk (a full disk may report its error only now). Their paths."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return paths


class SavingTrainer(HubTrainer):
    """
    [`Trainer`] whose models and checkpoints are whole or absent: it writes them into the folder `UNFINISHED`, waits
    until they are on the disk, and then renames them.
    """

    run_options: Mapping | None = None  # see `changes.py`
    trained_on: TrainedOn | None = None  # saved with the model, see `processing_tier.records.identities`
    model: nn.Module  # of [`Trainer`]
    _model_class: type[PreTrainedModel]  # with FSDP: the class before it was sharded
    _scalars: set[str]  # with FSDP: see `prepare_for_sharding`

    @contextlib.contextmanager
    def whole_model(self, state_dict: dict | None = None) -> Iterator[PreTrainedModel | None]:
        """
        The model with its whole weights, also as `self.model`, inside the block. With FSDP it is a copy that only the
        main process has, and every process has to call this.

        Args:
            state_dict (`dict`, *optional*): the whole weights, where they are at hand.
        """
        if not self.is_fsdp_enabled:
            yield self.accelerator.unwrap_model(self.model)
            return
        if state_dict is None:
            state_dict = self.accelerator.get_state_dict(self.model)
        if not self.accelerator.is_main_process:
            yield None
            return
        sharded = self.model
        self.model = whole_model(self._model_class, sharded, state_dict, self._scalars)
        try:
            yield self.model
        finally:
            self.model = sharded

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        output_dir = output_dir or self.args.output_dir
        if output_dir != self.args.output_dir:
            self._write(output_dir, state_dict)
            return
        self._finish_current_push()  # it reads the files that are about to change
        unfinished = os.path.join(output_dir, UNFINISHED)
        with writing("The model", output_dir):
            self._write(unfinished, state_dict)
            if self.args.should_save:
                for path in sync(unfinished):
                    target = Path(output_dir) / path.relative_to(unfinished)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
                shutil.rmtree(unfinished)

    def _write(self, output_dir: str, state_dict: dict | None) -> None:
        if not self.args.should_save:  # transformers 5.23 calls this in every process
            return
        with self.whole_model(state_dict):
            super()._save(output_dir, None if self.is_fsdp_enabled else state_dict)
        # The Trainer adds the arguments as a pickle, which is unsafe to open. JSON says the same.
        os.remove(os.path.join(output_dir, TRAINING_ARGS_NAME))
        if self.trained_on is not None:
            write_trained_on(output_dir, self.trained_on, self.pushes_publicly)
        with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
            json.dump(self.args.to_dict(), file, indent=2, default=str)
            file.write("\n")

    def _get_output_dir(self, trial: "optuna.Trial | dict | None") -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: "optuna.Trial | dict | None") -> None:
        run, step = Path(self._get_output_dir(trial)), self.state.global_step
        folder, best = (run / f"{PREFIX_CHECKPOINT_DIR}-{n}" for n in (step, self.state.best_global_step))
        unfinished = run / UNFINISHED
        with writing(f"The checkpoint of step {step}", str(run)):
            # 1. Write into a folder that is not a checkpoint
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            # super sets the best checkpoint and writes the state before the folder has its final name
            if best == folder or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / folder.name / TRAINER_STATE_NAME))
                if self.run_options is not None:
                    (unfinished / folder.name / RUN_OPTIONS).write_text(
                        json.dumps(self.run_options, indent=2) + "\n", encoding="utf-8"
                    )
            # 2. Rename when every process has written its files and all are on the disk; delete old checkpoints
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_checksums(unfinished / folder.name)
                sync(unfinished / folder.name)
                if folder.is_dir():  # of a run that resumed from an earlier step
                    folder.rename(unfinished / "replaced")
                (unfinished / folder.name).rename(folder)
                shutil.rmtree(unfinished)
                rotate_checkpoints(
                    output_dir=str(run),
                    save_total_limit=self.args.save_total_limit,
                    best_model_checkpoint=self.state.best_model_checkpoint,
                    use_mtime=False,  # by step: a clock may be set back
                )
        self.accelerator.wait_for_everyone()
        # 3. Push: super skips this while `_saving`
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
