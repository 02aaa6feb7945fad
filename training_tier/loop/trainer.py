"""
The Trainer of both tasks: callbacks, batches, optimizer, log, and the course of a run.

Its bases are in `evaluation.py`, `saving.py` (with `hub.py`), `resuming.py` and `stopping.py`; the parts for
contrastive training only are in `contrastive.py`.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput
from transformers.utils import is_peft_available

from processing_tier.progress import is_terminal
from training_tier.data.collator import count_images, refuse_batch
from training_tier.data.streaming import ShardedImages
from training_tier.data.workers import shield_workers
from training_tier.loop.callbacks import EpochSetter, LogEachEpoch
from training_tier.loop.checkpoints import TopCheckpoints, choose_checkpoint, set_later_aside
from training_tier.loop.evaluation import EvaluatingTrainer
from training_tier.loop.integrity import check_weights
from training_tier.loop.learning_rates import learning_rate_scales, scale_learning_rates
from training_tier.loop.locking import only_run
from training_tier.loop.resuming import BestOfThisRun, ResumingTrainer
from training_tier.loop.saving import UNFINISHED, SaveAfterEvaluation, SavingTrainer
from training_tier.loop.stopping import StoppingTrainer
from training_tier.loop.throughput import Throughput
from training_tier.loop.time_left import ProgressInLog, TimeLeft
from training_tier.memory.sharding import (
    broadcast_weights,
    check_sharded_checkpoint,
    check_sharding,
    prepare_for_sharding,
)
from training_tier.options.compatibility import Launch, refuse, rules_on_order, rules_on_whole_weights

if is_peft_available():
    from peft import PeftModel

LEARNING_RATE_OPTIONS = ("vision_lr_scale", "text_lr_scale", "layer_decay")


class RadiographTrainer(EvaluatingTrainer, SavingTrainer, ResumingTrainer, StoppingTrainer):
    """
    [`Trainer`] that skips images that do not decode, decays only matrices, and gives each tower and layer its learning
    rate. It tolerates interruptions, see `docs/interruptions.md`, and pushes models to the Hub that load.

    Args:
        training_facts (`Mapping`, *optional*): the facts of the training on the card, see [`write_model_card`].
        run_options (`Mapping`, *optional*): the options that a resumed run must share, see `loop/changes.py`.
        kwargs: the arguments of [`Trainer`]; `processing_class` makes the pixels.
    """

    def __init__(
        self, *, training_facts: Mapping | None = None, run_options: Mapping | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._check_distribution()
        if self.is_fsdp_enabled:
            self._model_class = type(self.model)
            self._scalars = prepare_for_sharding(self.model, self.accelerator.state.fsdp_plugin)
            # accelerate (1.15) does so for other models, but not for those that FSDP2 shards
            self.model.forward = self.accelerator.autocast()(self.model.forward)
        self.training_facts = training_facts
        self.run_options = run_options
        self._add_callbacks()
        self.check_order()

    def _add_callbacks(self) -> None:
        # The order counts: TopCheckpoints deletes before Preemption stops, and a save that Preemption asks for is one
        # that SaveAfterEvaluation may delay.
        self.add_callback(EpochSetter())
        self.add_callback(LogEachEpoch())
        self.add_callback(BestOfThisRun())
        if self.args.save_top_k is not None:
            self.add_callback(TopCheckpoints(self.args.save_top_k))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.add_callback(TimeLeft())
        if not is_terminal() and self.pop_callback(ProgressCallback) is not None:
            self.add_callback(ProgressInLog())
            self.add_callback(PrinterCallback())
        self.throughput = Throughput()
        self.add_callback(self.throughput)
        self.add_callback(self.preemption)
        self.add_callback(SaveAfterEvaluation())

    def check_order(self) -> None:
        """
        Raises:
            `ValueError`: the options of the order of the training images contradict each other.
        """
        streaming = isinstance(getattr(self.train_dataset, "images", None), ShardedImages)
        refuse(rules_on_order(self.args.train_sampling_strategy, streaming=streaming))

    def _check_distribution(self) -> None:
        check_sharding(self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None)
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            return
        refuse(
            rules_on_whole_weights(
                self.args, Launch(self.args.world_size, self.is_fsdp_enabled, self.is_deepspeed_enabled)
            )
        )
        if is_peft_available() and isinstance(self.model, PeftModel):
            raise ValueError("LoRA does not support FSDP or DeepSpeed; leave them out.")
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "The zero-shot AUROC needs whole weights, which DeepSpeed's ZeRO stage 3 shards; use stage 2 "
                "(configs/accelerate/deepspeed.yaml), or FSDP."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """
        See [`Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                a checkpoint, or `True` or `"last"` for the last whole one in `output_dir`.

        Raises:
            `TrainingStopped`: on SIGTERM, a loss that is not finite, a checkpoint that cannot be written, or the death
                of another process.
            `ValueError`: the checkpoint is damaged or belongs to another model, or another run uses `output_dir`.
        """
        with only_run(self.args):
            # 1. The checkpoint, and a folder without leftovers
            checkpoint = "last" if resume_from_checkpoint is True else resume_from_checkpoint or None
            checkpoint = choose_checkpoint(checkpoint, self.args.output_dir)
            if checkpoint is not None:
                check_weights(checkpoint, self.model)
            self.accelerator.wait_for_everyone()  # until all processes have chosen
            if self.args.should_save:
                shutil.rmtree(os.path.join(self.args.output_dir, UNFINISHED), ignore_errors=True)
                step = 0
                if checkpoint is not None:
                    step = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
                set_later_aside(self.args.output_dir, step)
            # 2. The training
            if self.is_fsdp_enabled:
                check_sharded_checkpoint(checkpoint)
                broadcast_weights(self.model, self.args.device)
            with self.stopping():
                output = super().train(checkpoint, **kwargs)
                return output._replace(training_loss=output.metrics["train_loss"])

    def get_train_dataloader(self) -> DataLoader:
        return shield_workers(super().get_train_dataloader())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        images = getattr(self.train_dataset if train_dataset is None else train_dataset, "images", None)
        if not isinstance(images, ShardedImages):
            return super()._get_train_sampler(train_dataset)
        images.set_layout_of_run(self._train_batch_size, self.args.world_size, self.args.dataloader_num_workers)
        return images

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, torch.Tensor | int | None]:
        self.throughput.on_batch_wait()
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            if not count_images(batch):
                refuse_batch(batch["unreadable"])
        self.throughput.on_batches(batches)
        return batches, num_items

    def log_sums(self) -> dict:
        unreadable = [[index, *report] for index, report in self.unreadable.items()]
        return super().log_sums() | {"unreadable": unreadable}

    def restore_log_sums(self, sums: Mapping) -> None:
        super().restore_log_sums(sums)
        self.unreadable |= {index: tuple(report) for index, *report in sums.get("unreadable", ())}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            half_precision = self.args.bf16 or self.args.fp16
            logs |= self.throughput.pop(self.model, self.args.world_size, half_precision)
        if "train_loss" in logs:  # super divides the losses of all steps by the number of resumed steps
            logs["train_loss"] = self.mean_training_loss()
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """
        The matrices of linear and convolutional layers; never `logit_scale`, embeddings, norms, biases, or the query
        of SigLIP's pooling head (`probe`).
        """
        parameters = dict(model.named_parameters())  # the library also names the places of absent ones
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if name in parameters
            and parameters[name].ndim > 1
            and ("patch_embedding" in name or "embedding" not in name)
            and not name.endswith(".probe")
        ]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        options = {name: getattr(self.args, name) for name in LEARNING_RATE_OPTIONS}
        if is_new and any(value != 1.0 for value in options.values()):
            scale_learning_rates(optimizer, learning_rate_scales(self.model, **options))
        return optimizer
