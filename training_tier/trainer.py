"""The Trainer of every task, and that of TIER models: its terms in the log, zero-shot AUROC in each evaluation."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    rotate_checkpoints,
)
from transformers.utils import is_peft_available, logging

from evaluation_tier.embedding import MAX_UNREADABLE
from evaluation_tier.processes import fail_together
from evaluation_tier.zeroshot import zero_shot_auroc
from modeling_tier.modeling_tier import TierCLIPOutput
from processing_tier.identities import TrainedOn, write_trained_on
from processing_tier.prompts import load_prompts

from .callbacks import (
    BestOfThisRun,
    EntropyWarmup,
    EpochSetter,
    LogitScaleClamp,
    Preemption,
    SaveAfterEvaluation,
    Throughput,
    TopCheckpoints,
    TrainingStopped,
)
from .checkpoints import set_later_aside
from .collator import refuse_batch
from .dataset import PairDataset
from .evaluation import EvaluatingTrainer
from .gradient_caching import backward_in_chunks
from .hub import HubTrainer
from .integrity import RUN_OPTIONS, check_weights, find_fault, reading, write_checksums
from .locking import only_run
from .optimization import learning_rate_scales, scale_learning_rates
from .resuming import UNFINISHED, choose_checkpoint, last_checkpoint
from .samplers import DistinctTextSampler, SimilarLengthSampler
from .sharding import (
    broadcast_weights,
    check_sharded_checkpoint,
    check_sharding,
    prepare_for_sharding,
    whole_model,
    whole_tensor,
)
from .streaming import ShardedImages
from .text_lengths import read_by_length
from .workers import shield_workers

if is_peft_available():
    from peft import PeftModel

logger = logging.get_logger(__name__)

LEARNING_RATE_OPTIONS = ("vision_lr_scale", "text_lr_scale", "layer_decay")
TERMS = ("contrastive_loss", "token_entropy", "patch_entropy")
PEER_ERRORS = ("closed by peer", "reset by peer", "Broken pipe")  # of gloo, which has no class of errors


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
            f"{what} cannot be written to {output_dir!r} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            + (f"{left} is whole: " if left else "no checkpoint was saved before: ")
            + ("make room and go on with --resume_from_checkpoint last." if left else "make room and start again.")
        ) from error


def sync(folder: str | os.PathLike) -> list[Path]:
    """Waits until the files in a folder are on the disk, which a full one may tell only now, and returns them."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return paths


def is_peer_error(error: Exception) -> bool:
    """Whether a collective operation failed, as it does where another process has died."""
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in PEER_ERRORS)


class RadiographTrainer(EvaluatingTrainer, HubTrainer):
    """
    [`Trainer`] that goes on without images that do not decode, decays matrices alone, and trains each tower and layer
    at its own learning rate. On the Hub, whatever it pushes and whenever, can be loaded and has this project's card.
    It is hard to break, see `docs/interruptions.md`: checkpoints are whole or not there, SIGTERM saves one, and a loss
    that is not finite ends the run.

    Args:
        training_facts (`Mapping`, *optional*): what the card says of the training, see [`write_model_card`].
        run_options (`Mapping`, *optional*): what a resumed run has to have in common, see `training_tier.resuming`.
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
        self.trained_on: TrainedOn | None = None  # saved with the model, see `processing_tier.identities`
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


class TierTrainer(RadiographTrainer):
    """
    [`RadiographTrainer`] that logs the three terms of the loss apart, in training and (prefixed `eval_`) in
    evaluation, adds the zero-shot AUROC of the evaluated data to each evaluation, and clamps `logit_scale`.

    The loss of an evaluation is over batches of `per_device_eval_batch_size` pairs in the order of the records,
    whatever the number of processes. `predict` returns `text_embeds` and `image_embeds`, in this order (the
    model's), with a row for each record: NaN where the image does not decode.

    Args:
        findings (`Sequence[str]`, *optional*):
            the columns of findings of which the AUROC is computed, on whatever data are evaluated; none for no AUROC.
        prompts (`str`, *optional*, defaults to `"report"`): see [`load_prompts`].
        avoid_duplicates (`bool`, *optional*, defaults to `False`): see [`DistinctTextSampler`].
        kwargs: what [`RadiographTrainer`] takes; `processing_class` is the [`TierProcessor`].
    """

    def __init__(
        self,
        *,
        findings: Sequence[str] = (),
        prompts: str = "report",
        avoid_duplicates: bool = False,
        **kwargs,
    ):
        self.avoid_duplicates = avoid_duplicates
        super().__init__(**kwargs)
        self.prompts = load_prompts(prompts, findings)
        self._terms: list[torch.Tensor] = []  # of training, since the last line of the log
        self.add_callback(LogitScaleClamp())
        if self.args.entropy_warmup_steps:
            self.add_callback(EntropyWarmup(self.args.entropy_warmup_steps))
        self.check_batch_size()
        self.check_padding()
        if self.args.group_texts:
            read_by_length(self.model.text_model)

    def check_padding(self) -> None:
        """
        Raises:
            `ValueError`: another padding would change the entropies, or be one that cannot be.
        """
        if self.args.group_texts and (self.args.torch_compile or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "group_texts makes batches of many shapes, in each process others, which torch_compile, FSDP and "
                "DeepSpeed do not take; leave it out."
            )
        config = self.model.config
        weighted = config.token_entropy_weight or config.patch_entropy_weight
        if config.entropy_tokens == "all" and weighted:
            for name in ("pad_to_multiple_of", "group_texts"):
                if getattr(self.args, name):
                    raise ValueError(
                        f"{name} changes the padding, which entropy_tokens='all' counts as words; leave it out, or "
                        "choose other tokens."
                    )

    def check_batch_size(self) -> None:
        """
        Raises:
            `ValueError`: a batch of one pair, a chunk larger than the batch, or chunks with DeepSpeed, which counts
                each backward pass as one of gradient accumulation.
        """
        pairs, chunk_size = self.args.train_batch_size, self.args.contrastive_chunk_size
        all_pairs = pairs * self.args.world_size
        if all_pairs < 2:
            raise ValueError(
                f"A batch of {all_pairs} pair{'' if all_pairs else 's'} has nothing to contrast it with; raise "
                "--per_device_train_batch_size to 2 or more."
            )
        if chunk_size is None:
            if self.args.gradient_accumulation_steps > 1:
                logger.warning(
                    f"gradient_accumulation_steps={self.args.gradient_accumulation_steps} adds no negatives: a pair "
                    f"is contrasted with the {all_pairs} of its own step of accumulation. For more, raise "
                    f"--per_device_train_batch_size and add --contrastive_chunk_size {pairs}."
                )
            return
        if chunk_size > pairs:
            raise ValueError(
                f"contrastive_chunk_size={chunk_size} is more than the {pairs} pairs of a batch, which would be one "
                "chunk; lower it, or raise --per_device_train_batch_size."
            )
        if getattr(self.train_dataset, "image_views", 1) > 1:
            raise ValueError("contrastive_chunk_size does not work with image_views; leave one of them out.")
        if self.args.torch_compile and self.args.world_size > 1:
            raise ValueError(
                "contrastive_chunk_size and torch_compile go together in one process alone; leave one out."
            )
        if self.is_deepspeed_enabled:
            raise ValueError(
                "contrastive_chunk_size works on one process, with DistributedDataParallel and with FSDP, not with "
                "DeepSpeed; leave it out."
            )

    def check_sampling(self) -> None:
        super().check_sampling()
        strategy = self.args.train_sampling_strategy
        if strategy != "random" and self.avoid_duplicates:
            raise ValueError(
                f"train_sampling_strategy={strategy!r} and avoid_duplicates each order the images; leave one of them "
                "out (--soft_targets goes with both)."
            )
        if strategy == "group_by_length" and self.train_dataset.sample_sentences:
            raise ValueError(
                f"train_sampling_strategy={strategy!r} needs the length of each text beforehand, and sample_sentences "
                "draws another in each epoch; leave one of them out."
            )

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        if self.args.contrastive_chunk_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        self.pop_reports(inputs)
        steps = self.current_gradient_accumulation_steps
        outputs = backward_in_chunks(
            model, inputs, self.args.contrastive_chunk_size, lambda loss: self.accelerator.backward(loss / steps)
        )
        self.add_terms(outputs, len(inputs["input_ids"]))
        return outputs["loss"] / steps

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self._evaluated is None:
            self.add_terms(outputs, len(inputs["input_ids"]))
        else:
            self._eval_terms = {term: outputs[term].detach() for term in TERMS}
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        kept = ("image_embeds", "text_embeds")
        ignored = [output.name for output in fields(TierCLIPOutput) if output.name not in kept]
        return super().prediction_step(model, inputs, prediction_loss_only, [*ignored, *(ignore_keys or ())])

    def add_terms(self, outputs: Mapping[str, torch.Tensor], pairs: int) -> None:
        terms = torch.stack([outputs[term].detach().float() for term in TERMS])
        self._terms.append(torch.cat([terms * pairs, terms.new_tensor([pairs])]))

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self._train_batch_size * self.args.world_size
        if self.avoid_duplicates:
            return DistinctTextSampler(dataset, batch_size, self.args.seed)
        if self.args.train_sampling_strategy == "group_by_length":
            multiple = self.args.pad_to_multiple_of or 1
            return SimilarLengthSampler(dataset, self.processing_class.tokenizer, batch_size, multiple, self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def pop_terms(self) -> dict[str, float]:
        """Mean of each term over the pairs since the last call, of all the processes, which all have to call."""
        sums = self.accelerator.reduce(torch.stack(self._terms).sum(dim=0), "sum")
        self._terms.clear()
        return dict(zip(TERMS, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms:
            logs |= self.pop_terms()
            scale = whole_tensor(self.accelerator.unwrap_model(self.model).logit_scale.detach())
            logs["logit_scale"] = scale.exp().item()
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader: DataLoader, *args, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        # here and not in evaluate(), so that the log and every callback see these numbers too
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        aurocs = self.zero_shot_auroc(dataloader.dataset)
        for name, value in aurocs.items():
            key = "auroc" if name == "mean" else f"auroc_{name}"
            output.metrics[f"{metric_key_prefix}_{key}"] = value
        return output

    def log_sums(self) -> dict:
        return super().log_sums() | {"terms": [terms.tolist() for terms in self._terms]}

    def restore_log_sums(self, sums: Mapping) -> None:
        super().restore_log_sums(sums)
        self._terms = [torch.tensor(terms, device=self.args.device) for terms in sums["terms"]]

    def zero_shot_auroc(self, dataset: PairDataset) -> dict[str, float]:
        """
        See [`evaluation_tier.zeroshot.zero_shot_auroc`], of the images and labels of a data set; computed by the main
        process, known to all. A finding without labels there is left out, with a warning.
        """
        records = dataset.all_columns
        findings = [finding for finding in self.prompts if finding in records.column_names]
        if "image" not in records.column_names:
            findings = []
        missing = [finding for finding in self.prompts if finding not in findings]
        if missing:
            reason = "labels" if "image" in records.column_names else "images (they are streamed)"
            logger.warning(f"The evaluated records hold no {reason} of {', '.join(missing)}: its AUROC is left out.")
        if not findings:
            return {}
        result = [None]
        with self.whole_model() as model, fail_together():
            if self.accelerator.is_main_process:
                model.to(self.args.device)
                with torch.autocast(model.device.type, enabled=False):
                    result[0] = zero_shot_auroc(
                        model,
                        self.processing_class,
                        records,
                        findings,
                        self.prompts,
                        batch_size=self.args.eval_batch_size,
                    )
        return broadcast_object_list(result)[0]
