"""
Evaluation with the same numbers on any number of processes: each process takes whole batches in turn and computes
their loss alone; then all results are put in the order of the records.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer
from transformers.trainer_utils import EvalLoopOutput, denumpify_detensorize
from transformers.utils import logging

from evaluation_tier.models.images import MAX_UNREADABLE
from modeling_tier.global_batch_tier import separate_batches
from training_tier.data.collator import count_images, refuse_batch
from training_tier.data.labels import NOT_STATED
from training_tier.data.pairs import PairDataset
from training_tier.data.workers import shield_workers

logger = logging.get_logger(__name__)


class BatchesInTurn(torch.utils.data.Sampler):
    """
    The batches of one process: every n-th batch of those that a single process would read. A process with one batch
    fewer reads the first batch again, because with FSDP all processes compute together; [`is_own`] tells them apart.

    Args:
        num_rows (`int`): records of the data set.
        batch_size (`int`): records of a batch.
        rank, world_size (`int`): index of this process, and number of processes.
    """

    def __init__(self, num_rows: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.num_rows, self.batch_size = num_rows, batch_size
        self.rank, self.world_size = rank, world_size

    @property
    def num_batches(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def __len__(self) -> int:
        return math.ceil(self.num_batches / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            batch = step * self.world_size + self.rank
            start = batch * self.batch_size if batch < self.num_batches else 0
            yield list(range(start, min(start + self.batch_size, self.num_rows)))

    def is_own(self, index: int) -> bool:
        """Whether the batch of this record counts in this process."""
        return index // self.batch_size % self.world_size == self.rank


@dataclass
class EvaluatedBatch:
    """
    The results of one batch.

    Args:
        first (`int`): the lowest number of its records.
        weight (`int` or `torch.Tensor`): how many pairs or stated labels its means are over.
        means (`Mapping[str, torch.Tensor]`): the loss and its terms, scalars.
        indices (`list[int]`): the numbers of the records of the outputs.
        outputs (`tuple`): tensors or arrays with a row for each of these records.
        labels (`torch.Tensor`, *optional*): with a row for each of these records.
    """

    first: int
    weight: int | torch.Tensor
    means: Mapping[str, torch.Tensor]
    indices: list[int]
    outputs: tuple = ()
    labels: torch.Tensor | None = None

    def on_cpu(self) -> "EvaluatedBatch":
        def to_numpy(tensor: Any) -> Any:
            return tensor.detach().float().cpu().numpy() if torch.is_tensor(tensor) else tensor

        return EvaluatedBatch(
            self.first,
            float(self.weight),
            {name: float(value) for name, value in self.means.items()},
            self.indices,
            tuple(to_numpy(output) for output in self.outputs),
            to_numpy(self.labels),
        )


@dataclass
class EvaluationPass:
    """
    The results of one process in an evaluation, and after [`gather`] those of all processes.

    Args:
        sampler ([`BatchesInTurn`]): of this process.
        batches (`list`, *optional*): an [`EvaluatedBatch`] for each batch.
        unreadable (`list`, *optional*): see `training_tier.data.collator.list_unreadable`.
    """

    sampler: BatchesInTurn
    batches: list[EvaluatedBatch] = field(default_factory=list)
    unreadable: list[tuple[int, str, str]] = field(default_factory=list)

    def gather(self) -> None:
        """Collects the batches of all processes in the order of the records. Every process has to call this."""
        batches = [batch.on_cpu() for batch in self.batches]
        unreadable = self.unreadable
        if self.sampler.world_size > 1:
            batches, unreadable = gather_object(batches), gather_object(unreadable)
        self.batches = sorted(batches, key=lambda batch: batch.first)
        self.unreadable = sorted(unreadable)

    def means(self) -> dict[str, float]:
        """The loss and its terms over all batches; NaN without a stated label."""
        total = math.fsum(batch.weight for batch in self.batches)
        names = self.batches[0].means if self.batches else ()
        return {
            name: math.fsum(batch.means[name] * batch.weight for batch in self.batches if batch.weight) / total
            if total
            else math.nan
            for name in names
        }

    def predictions(self) -> tuple[np.ndarray | tuple[np.ndarray, ...] | None, np.ndarray | None]:
        """
        The outputs and the labels, a row for each record of the data set, in their order. Where an image does not
        decode, they are NaN and -100.
        """
        with_outputs = [batch for batch in self.batches if batch.outputs]
        if not with_outputs:
            return None, None
        outputs = tuple(
            self._rows([(batch.indices, batch.outputs[i]) for batch in with_outputs], math.nan)
            for i in range(len(with_outputs[0].outputs))
        )
        for output in outputs:
            output[[index for index, *_ in self.unreadable]] = math.nan
        labels = None
        if with_outputs[0].labels is not None:
            labels = self._rows([(batch.indices, batch.labels) for batch in with_outputs], NOT_STATED)
        return (outputs[0] if len(outputs) == 1 else outputs), labels

    def _rows(self, parts: Sequence[tuple[list[int], np.ndarray]], fill: float) -> np.ndarray:
        rows = np.full((self.sampler.num_rows, *parts[0][1].shape[1:]), fill, dtype=np.float32)
        for indices, part in parts:
            rows[indices] = part
        return rows


def share_buffers(model: torch.nn.Module) -> None:
    """
    Gives all processes the buffers of the main process, such as the running statistics of batch norms. In training
    they differ between processes; the main process saves its values.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class EvaluatingTrainer(Trainer):
    """[`Trainer`] whose evaluation and prediction read every record, and do not depend on the number of processes."""

    _evaluated: EvaluationPass | None = None  # the running evaluation
    _eval_terms: Mapping[str, torch.Tensor] = {}  # of its last batch, beside the loss

    def get_eval_dataloader(self, eval_dataset: str | PairDataset | None = None) -> DataLoader:
        """
        Batches of every record in order, the last one smaller. `dataloader_drop_last` and the order of the training
        do not apply.

        Raises:
            `ValueError`: see [`check_evaluated`].
        """
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        elif isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        self.check_evaluated(eval_dataset)
        args = self.args
        batches = BatchesInTurn(len(eval_dataset), args.eval_batch_size, args.process_index, args.world_size)
        loader = DataLoader(
            eval_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            generator=torch.Generator(),  # an evaluation must not use the training's random numbers
        )
        return shield_workers(loader)

    def get_test_dataloader(self, test_dataset: PairDataset) -> DataLoader:
        """See [`get_eval_dataloader`]."""
        return self.get_eval_dataloader(test_dataset)

    def check_evaluated(self, dataset: PairDataset) -> None:
        """
        Raises:
            `ValueError`: the data are not a [`PairDataset`], or lack the labels of the classifier.
        """
        if not isinstance(dataset, PairDataset):
            kind = "LabelledDataset" if self.label_names else "PairDataset"
            raise ValueError(
                f"An evaluation needs a {kind}, but got a {type(dataset).__name__}; make one from the records: "
                f"{kind}(records, ...)."
            )
        if len(dataset) == 0:
            raise ValueError("An evaluation needs at least one record, but the data set is empty.")
        if self.label_names:
            known = list(self.accelerator.unwrap_model(self.model).config.id2label.values())
            given = getattr(dataset, "findings", [])
            if given != known:
                raise ValueError(
                    f"The findings of the classifier are {', '.join(known)}, in this order, but the labels of the "
                    f"data are of {', '.join(given) or 'no finding'}. Make a LabelledDataset with the classifier's "
                    "findings."
                )

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        share_buffers(self.accelerator.unwrap_model(self.model))
        self._evaluated = EvaluationPass(dataloader.batch_sampler)
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            self._evaluated.gather()
            self._check_decoded(self._evaluated.unreadable, len(dataloader.dataset))
            metrics = self._evaluated.means()
            predictions, labels = self._evaluated.predictions()
        finally:
            self._evaluated = None
        if self.compute_metrics is not None and predictions is not None and labels is not None:
            computed = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
            metrics |= denumpify_detensorize(computed)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions, labels, output.metrics | metrics, len(dataloader.dataset))

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        # Returns nothing, so that super does not gather: evaluation_loop does, by the number of each record.
        indices, unreadable = inputs.pop("indices"), inputs.pop("unreadable")
        inputs.pop("image_ids")
        first = min([*indices, *(index for index, *_ in unreadable)])
        counts = self._evaluated.sampler.is_own(first)
        if counts:
            self._evaluated.unreadable.extend(unreadable)
        if not count_images(inputs):
            if self.is_fsdp_enabled:  # the other processes wait for this one
                refuse_batch(unreadable)
            return None, None, None
        with separate_batches():
            loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if counts:
            outputs = () if outputs is None else outputs if isinstance(outputs, tuple) else (outputs,)
            labels = labels if torch.is_tensor(labels) else None  # () for a model without labels
            weight = (inputs["labels"] >= 0).sum() if "labels" in inputs else len(indices)
            means = {"loss": loss, **self._eval_terms}
            self._evaluated.batches.append(EvaluatedBatch(first, weight, means, indices, outputs, labels))
        return None, None, None

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        # in evaluation, the loss of a batch is the mean over its own labels only
        return None if self._evaluated is not None else super()._get_num_items_in_batch(batch_samples, device)

    def _check_decoded(self, unreadable: Sequence[tuple[int, str, str]], count: int) -> None:
        if not unreadable:
            return
        _, image_id, error = unreadable[-1]
        if len(unreadable) > MAX_UNREADABLE * count:
            raise ValueError(
                f"{len(unreadable)} of {count} images to evaluate do not decode, more than 1 %: repair or remove "
                f"them. The last one: {error}"
            )
        logger.warning_once(
            f"{len(unreadable)} of {count} images to evaluate do not decode and are skipped. The last one is "
            f"{image_id}: {error}"
        )
