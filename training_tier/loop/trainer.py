import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import is_peft_available

from evaluation_tier.models.embedding import MAX_UNREADABLE
from processing_tier.records.identities import TrainedOn, write_trained_on
from training_tier.data.collator import refuse_batch
from training_tier.data.streaming import ShardedImages
from training_tier.data.workers import shield_workers
from training_tier.loop.callbacks import (
    BestOfThisRun,
    EpochSetter,
    Preemption,
    SaveAfterEvaluation,
    Throughput,
    TopCheckpoints,
    TrainingStopped,
)
from training_tier.loop.checkpoints import set_later_aside
from training_tier.loop.evaluation import EvaluatingTrainer
from training_tier.loop.hub import HubTrainer
from training_tier.loop.integrity import RUN_OPTIONS, check_weights, find_fault, reading, write_checksums
from training_tier.loop.learning_rates import learning_rate_scales, scale_learning_rates
from training_tier.loop.locking import only_run
from training_tier.loop.resuming import UNFINISHED, choose_checkpoint, last_checkpoint
from training_tier.loop.saving import is_peer_error, sync, writing
from training_tier.memory.sharding import (
    broadcast_weights,
    check_sharded_checkpoint,
    check_sharding,
    prepare_for_sharding,
    whole_model,
)

if is_peft_available():
    from peft import PeftModel

LEARNING_RATE_OPTIONS = ("vision_lr_scale", "text_lr_scale", "layer_decay")


class RadiographTrainer(EvaluatingTrainer, HubTrainer):
    """
    [`Trainer`] that goes on without images that do not decode, decays matrices alone, and trains each tower and layer
    at its own learning rate. On the Hub, whatever it pushes and whenever, can be loaded and has this project's card.
    It is hard to break, see `docs/interruptions.md`: checkpoints are whole or not there, SIGTERM saves one, and a loss
    that is not finite ends the run.

    Args:
        training_facts (`Mapping`, *optional*): what the card says of the training, see [`write_model_card`].
        run_options (`Mapping`, *optional*): what a resumed run has to have in common, see `loop/resuming.py`.
        kwargs: what [`Trainer`] takes; `processing_class` is what makes the pixels.
    """

    def __init__(self, *, training_facts: Mapping | None = None, run_options: Mapping | None = None, **kwargs):
        super().__init__(**kwargs)
        self._check_distribution()
        if self.is_fsdp_enabled:
            self._model_class = type(self.model)
            self._scalars = prepare_for_sharding(self.model, self.accelerator.state.fsdp_plugin)
            # accelerate (1.15) does so for other models, but not for those that FSDP2 shards
            self.model.forward = self.accelerator.autocast()(self.model.forward)
        self.training_facts = training_facts
        self.run_options = run_options
        self.trained_on: TrainedOn | None = None  # saved with the model, see `processing_tier.records.identities`
        self.unreadable: dict[int, tuple[str, str]] = {}  # training record to image id and reason, of this process
        self._new_unreadable = False
        self.preemption = Preemption()
        self._image_ids: list[str] = []  # of the step
        self.add_callback(EpochSetter())
        self.add_callback(BestOfThisRun())
        if self.args.save_top_k is not None:
            self.add_callback(TopCheckpoints(self.args.save_top_k))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.throughput = Throughput(self.args.group_texts)
        self.add_callback(self.throughput)
        self.add_callback(self.preemption)
        self.add_callback(SaveAfterEvaluation())
        self.check_sampling()

    def check_sampling(self) -> None:
        """
        Raises:
            `ValueError`: an order of the training images that cannot be made.
        """
        strategy = self.args.train_sampling_strategy
        if strategy != "random" and isinstance(getattr(self.train_dataset, "images", None), ShardedImages):
            raise ValueError(
                f"train_sampling_strategy={strategy!r} orders the images, and streaming takes them from where they "
                "lie; leave one of them out."
            )

    def _check_distribution(self) -> None:
        check_sharding(self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None)
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            return
        if self.args.average_top_k:
            raise ValueError("average_top_k works on whole weights, not on those that FSDP or DeepSpeed part.")
        if is_peft_available() and isinstance(self.model, PeftModel):
            raise ValueError(
                "LoRA trains few weights, for which there is nothing to part; use it without FSDP and DeepSpeed."
            )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "DeepSpeed's ZeRO stage 3 parts the weights, which the zero-shot AUROC needs whole; use stage 2 "
                "(configs/accelerate/deepspeed.yaml), or FSDP."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        See [`Trainer.train`].

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*):
                a checkpoint, or `True` or `"last"` for the last whole one in `output_dir`.

        Raises:
            `TrainingStopped`: by SIGTERM, a loss that is not finite, a checkpoint that cannot be written, or the death
                of another process.
            `ValueError`: the checkpoint is not whole, is not as it was saved, or belongs to another model; another run
                is under way in `output_dir`.
        """
        with only_run(self.args):
            checkpoint = "last" if resume_from_checkpoint is True else resume_from_checkpoint or None
            checkpoint = choose_checkpoint(checkpoint, self.args.output_dir)
            if checkpoint is not None:
                check_weights(checkpoint, self.model)
            self.accelerator.wait_for_everyone()  # all have chosen
            if self.args.should_save:
                shutil.rmtree(os.path.join(self.args.output_dir, UNFINISHED), ignore_errors=True)
                step = 0
                if checkpoint is not None:
                    step = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
                set_later_aside(self.args.output_dir, step)
            return self._train(checkpoint, **kwargs)

    def _train(self, resume_from_checkpoint: str | None, **kwargs):
        if self.is_fsdp_enabled:
            check_sharded_checkpoint(resume_from_checkpoint)
            broadcast_weights(self.model, self.args.device)
        with self.preemption.listening():
            try:
                output = super().train(resume_from_checkpoint, **kwargs)
                return output._replace(training_loss=output.metrics["train_loss"])
            except TrainingStopped:
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # closes the logs
                raise
            except RuntimeError as error:
                if self.args.world_size == 1 or not is_peer_error(error):
                    raise
                raise TrainingStopped(
                    f"Process {self.args.process_index} cannot go on after step {self.state.global_step}: another "
                    f"one has ended ({str(error).splitlines()[0]}); {self.describe_last_checkpoint()}."
                ) from error

    def describe_last_checkpoint(self) -> str:
        last = last_checkpoint(self.args.output_dir)
        return f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"

    def get_batch_samples(self, *args, **kwargs):
        self.throughput.on_batch_wait()
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            if "pixel_values" not in batch:
                refuse_batch(batch["unreadable"])
        self.throughput.on_batches(batches)
        return batches, num_items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            half_precision = self.args.bf16 or self.args.fp16
            logs |= self.throughput.pop(self.model, self.args.world_size, half_precision)
        if "train_loss" in logs:  # super's is wrong in a resumed run: all steps' losses, divided by the resumed ones
            logs["train_loss"] = self.mean_training_loss()
        super().log(logs, start_time)

    def mean_training_loss(self) -> float:
        """Over all the steps of the run, those before it was resumed among them; all processes have to call this."""
        logged = [(entry["step"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        total, last = 0.0, 0
        for step, loss in logged:
            total, last = total + loss * (step - last), step
        unlogged = self.state.global_step - self._globalstep_last_logged
        if unlogged:
            total += self.accelerator.reduce(self._tr_loss, "mean").item()
        return total / max(last + unlogged, 1)

    def _init_training_state(self, max_steps, *args, **kwargs):
        # transformers (5.23) compares the options with the numbers of steps in the checkpoint: 0.1 with 12, say
        shares = {name: getattr(self.args, name) for name in ("logging_steps", "eval_steps", "save_steps")}
        shares = {name: share for name, share in shares.items() if share is not None and share < 1}
        for name, share in shares.items():
            setattr(self.args, name, math.ceil(max_steps * share))
        try:
            return super()._init_training_state(max_steps, *args, **kwargs)
        finally:
            for name, share in shares.items():
                setattr(self.args, name, share)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        self.pop_reports(inputs)
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    def pop_reports(self, inputs: dict) -> None:
        """
        Takes out of a training batch what the collator reports besides the model's inputs, and remembers it: the image
        ids, and which images do not decode.
        """
        self._image_ids.extend(inputs.pop("image_ids", ()))
        inputs.pop("indices", None)
        for index, image_id, error in inputs.pop("unreadable", ()):
            self._new_unreadable = self._new_unreadable or index not in self.unreadable
            self.unreadable[index] = (image_id, error)

    def check_unreadable(self) -> None:
        """
        Counts the training images that did not decode in any process, which all have to call this.

        Raises:
            `ValueError`: they are too many.
        """
        if self.args.world_size > 1:
            self.unreadable = dict(gather_object(list(self.unreadable.items())))
        self._new_unreadable = False
        if len(self.unreadable) > MAX_UNREADABLE * len(self.train_dataset):
            raise ValueError(
                f"At least {len(self.unreadable)} of {len(self.train_dataset)} training images do not decode, more "
                f"than 1 %: repair or remove them. The last one: {list(self.unreadable.values())[-1][1]}"
            )

    def _get_grad_norm(self, model, grad_norm=None):
        # the one place between the losses of a step and its change of the weights where both numbers are known
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.check_step(grad_norm)
        return grad_norm

    def check_step(self, grad_norm: torch.Tensor | float | None) -> None:
        """
        Agrees with the other processes on whether SIGTERM has come, whether loss and gradient are finite, and whether
        too many images do not decode.

        Args:
            grad_norm (`torch.Tensor` or `float`, *optional*): of this step; not looked at where a gradient scaler
                skips steps whose gradients are not finite.

        Raises:
            `TrainingStopped`: one of them is not.
            `ValueError`: see [`check_unreadable`].
        """
        image_ids, self._image_ids = self._image_ids, []
        scaled = getattr(self.accelerator, "scaler", None) is not None
        norm = 0.0 if grad_norm is None or scaled else float(grad_norm)
        loss = self._tr_loss.item()  # since the last log, all steps before this one finite
        flags = [not math.isfinite(loss), not math.isfinite(norm), self.preemption.requested, self._new_unreadable]
        if self.args.world_size > 1:
            flags = self.accelerator.reduce(self._tr_loss.new_tensor(flags), "sum").tolist()
        bad_loss, bad_gradient, self.preemption.agreed, new_unreadable = map(bool, flags)
        if new_unreadable:
            self.check_unreadable()
        if not bad_loss and not bad_gradient:
            return
        if self.args.world_size > 1:
            image_ids = gather_object(image_ids)
        raise TrainingStopped(
            f"The {'loss' if bad_loss else 'gradient'} of step {self.state.global_step + 1} is not finite, with the "
            f"images {', '.join(image_ids)}; {self.describe_last_checkpoint()}: look at these images and their texts, "
            "or go on from there with a lower --learning_rate and --resume_changed true.",
            in_all_processes=True,
        )

    def _get_train_sampler(self, train_dataset=None):
        images = getattr(self.train_dataset if train_dataset is None else train_dataset, "images", None)
        if not isinstance(images, ShardedImages):
            return super()._get_train_sampler(train_dataset)
        workers = self.args.dataloader_num_workers
        if self.args.world_size > 1 and len(numbers := set(gather_object([workers]))) > 1:
            raise ValueError(
                f"The processes have {' and '.join(map(str, sorted(numbers)))} data-loader workers, which with "
                "streaming decide who reads what; give all the same --dataloader_num_workers."
            )
        images.set_layout(self._train_batch_size, self.args.world_size, workers)
        return images

    def get_train_dataloader(self):
        return shield_workers(super().get_train_dataloader())

    def get_decay_parameter_names(self, model) -> list[str]:
        """The matrices of linear and convolutional layers; never `logit_scale`, embeddings, norms or biases."""
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if model.get_parameter(name).ndim > 1 and ("patch_embedding" in name or "embedding" not in name)
        ]

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        options = {name: getattr(self.args, name) for name in LEARNING_RATE_OPTIONS}
        if is_new and any(value != 1.0 for value in options.values()):
            scale_learning_rates(optimizer, learning_rate_scales(self.model, **options))
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict=None):
        output_dir = output_dir or self.args.output_dir
        if output_dir != self.args.output_dir:
            self._write(output_dir, state_dict)
            return
        self._finish_current_push()  # which reads the files that are about to change
        unfinished = os.path.join(output_dir, UNFINISHED)
        with writing("The model", output_dir):
            self._write(unfinished, state_dict)
            if self.args.should_save:
                for path in sync(unfinished):
                    target = Path(output_dir) / path.relative_to(unfinished)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
                shutil.rmtree(unfinished)

    @contextlib.contextmanager
    def whole_model(self, state_dict: dict | None = None) -> Iterator[PreTrainedModel | None]:
        """
        The model with its whole weights, also as `self.model`, for as long as it is needed. FSDP parts them: then it
        is a copy, which the main process alone has, and for which all of them have to call this.

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

    def _write(self, output_dir: str, state_dict: dict | None) -> None:
        if not self.args.should_save:  # transformers 5.23 calls this in every process
            return
        with self.whole_model(state_dict):
            super()._save(output_dir, None if self.is_fsdp_enabled else state_dict)
        # The Trainer adds a pickle of the arguments, which nothing reads and nobody should open; JSON says the same.
        os.remove(os.path.join(output_dir, TRAINING_ARGS_NAME))
        if self.trained_on is not None:
            public = self.args.push_to_hub and not self.args.hub_private_repo
            write_trained_on(output_dir, self.trained_on, public)
        with open(os.path.join(output_dir, "training_args.json"), "w", encoding="utf-8") as file:
            json.dump(self.args.to_dict(), file, indent=2, default=str)
            file.write("\n")

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._saving else folder

    def _save_checkpoint(self, model, trial) -> None:
        # Written beside, where nothing looks for checkpoints, and renamed when all processes have written their part
        # and it is on the disk. What super does last (the best checkpoint's name, the Hub, removal of old ones) needs
        # the final name, and is done here.
        run, step = Path(self._get_output_dir(trial)), self.state.global_step
        folder, best = (run / f"{PREFIX_CHECKPOINT_DIR}-{n}" for n in (step, self.state.best_global_step))
        unfinished = run / UNFINISHED
        with writing(f"The checkpoint of step {step}", str(run)):
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            if best == folder or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / folder.name / TRAINER_STATE_NAME))
                if self.run_options is not None:
                    (unfinished / folder.name / RUN_OPTIONS).write_text(
                        json.dumps(self.run_options, indent=2) + "\n", encoding="utf-8"
                    )
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_checksums(unfinished / folder.name)
                sync(unfinished / folder.name)
                if folder.is_dir():  # of a run that was resumed from before it
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
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def log_sums(self) -> dict:
        """What the next line of the log is made of, apart from what is still to come; JSON."""
        unreadable = [[index, *report] for index, report in self.unreadable.items()]
        return {"loss": self._tr_loss.item(), "step": self._globalstep_last_logged, "unreadable": unreadable}

    def restore_log_sums(self, sums: Mapping) -> None:
        self._tr_loss.fill_(sums["loss"])
        self._globalstep_last_logged = sums["step"]
        self.unreadable |= {index: tuple(report) for index, *report in sums.get("unreadable", ())}

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        with reading("weights", resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading("optimizer or scheduler", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading("gradient scaler", checkpoint):
            super()._load_scaler(checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if fault := find_fault(best):
            raise TrainingStopped(
                f"The training is complete, but its best checkpoint {best} is not whole: {fault}; delete it and add "
                "--resume_from_checkpoint last, which then ends with the last weights.",
                in_all_processes=True,
            )
        super()._load_best_model()

    def log_sums_file(self, checkpoint: str) -> str:
        return os.path.join(checkpoint, f"log_sums_{self.args.process_index}.json")
