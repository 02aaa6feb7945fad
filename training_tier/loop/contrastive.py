"""The Trainer of contrastive training: pairs, the terms of the loss, zero-shot AUROC."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from evaluation_tier.models.processes import fail_together
from evaluation_tier.scoring.zeroshot import zero_shot_auroc
from modeling_tier.base_tier import TierCLIPOutput
from modeling_tier.texts_tier import is_padded_to_the_end
from processing_tier.prompts.loader import load_prompts
from training_tier.data.feature_cache import cache_features
from training_tier.data.features import embed_features
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.samplers import DistinctTextSampler, SimilarLengthSampler
from training_tier.data.streaming import ShardedImages
from training_tier.data.text_packing import can_pack, read_packed
from training_tier.loop.by_heart import ByHeart
from training_tier.loop.callbacks import EntropyWarmup, FrozenTowers, LogitScaleClamp
from training_tier.loop.trainer import RadiographTrainer
from training_tier.memory.gradient_caching import backward_in_chunks
from training_tier.memory.sharding import whole_tensor
from training_tier.options.compatibility import (
    Launch,
    drawing_option,
    refuse,
    rules_on_chunks,
    rules_on_negatives,
    rules_on_order,
    rules_on_text_groups,
)

logger = logging.get_logger(__name__)

# Above this ratio of weight and temperature, a gradient that is not finite is theirs. (Used ratios are below 100.)
EXCESSIVE_WEIGHT = 1e6

TERMS = ("contrastive_loss", "token_entropy", "patch_entropy")  # and evidence_entropy with a weight


class TierTrainer(RadiographTrainer):
    """
    [`RadiographTrainer`] that logs the terms of the loss in training and (prefixed `eval_`) in evaluation, adds
    the zero-shot AUROC of the evaluated data to each evaluation, and clamps `logit_scale`, except SigLIP's.

    An evaluation computes its loss over batches of `per_device_eval_batch_size` pairs in the order of the records,
    with any number of processes. `predict` returns `text_embeds` and `image_embeds`, in this order (the model's), with
    a row for each record: NaN where the image does not decode.

    Args:
        findings (`Sequence[str]`, *optional*):
            columns of findings whose AUROC each evaluation computes.
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
        **kwargs: Any,
    ) -> None:
        self.avoid_duplicates = avoid_duplicates
        super().__init__(**kwargs)
        self.prompts = load_prompts(prompts, findings)
        self.terms = (*TERMS, "evidence_entropy") if self.model.config.evidence_entropy_weight else TERMS
        self._terms: list[torch.Tensor] = []  # of training, since the last log entry
        self.is_siglip = is_padded_to_the_end(self.model.config)
        if not self.is_siglip:  # which does not clamp its scale (arXiv:2303.15343, Algorithm 1)
            self.add_callback(LogitScaleClamp())
            images = getattr(self.train_dataset, "images", None)
            if not (self.is_fsdp_enabled or self.is_deepspeed_enabled or isinstance(images, ShardedImages)):
                self.add_callback(ByHeart())
        if self.args.entropy_warmup_steps:
            self.add_callback(EntropyWarmup(self.args.entropy_warmup_steps))
        self.check_batches()
        self.check_padding()
        if self.groups_texts():
            read_packed(self.model.text_model)
            self.throughput.group_texts = True

    def groups_texts(self) -> bool:
        """`group_texts`; where it was not given, whether it is faster (on a CPU) and possible."""
        args, config = self.args, self.model.config
        if args.group_texts is not None:
            return args.group_texts
        needs_one_shape = args.torch_compile or self.is_fsdp_enabled or self.is_deepspeed_enabled or self.is_siglip
        if args.device.type != "cpu" or needs_one_shape or config.entropy_tokens == "all":
            return False
        return can_pack(self.model.text_model.config)

    def use_cached_features(self, folder: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
        """
        Trains and evaluates from now on with the outputs of frozen towers that a folder keeps; see [`cache_features`].
        """
        hashes = cache_features(self.model, self.data_collator, [self.train_dataset, self.eval_dataset], folder, dtype)
        self.add_callback(FrozenTowers(hashes))

    def check_padding(self) -> None:
        """
        Raises:
            `ValueError`: another padding would change the entropies, or what SigLIP reads.
        """
        config = self.model.config
        if self.is_siglip:
            given = {name: getattr(self.args, name) for name in ("pad_to_multiple_of", "group_texts")}
            if self.args.torch_compile:
                del given["pad_to_multiple_of"]  # its default there, not the user's
            if self.args.train_sampling_strategy == "group_by_length":
                given["train_sampling_strategy"] = "group_by_length"
            for name in filter(given.get, given):
                raise ValueError(f"{name} has no effect on SigLIP, whose texts all have one length; leave it out.")
            if not getattr(self.data_collator, "for_siglip", False):
                raise ValueError("SigLIP reads other texts: pass data_collator=PairCollator(..., for_siglip=True).")
            return
        weighted = config.token_entropy_weight or config.patch_entropy_weight
        if config.entropy_tokens == "all" and weighted:
            for name, unchanged in (("pad_to_multiple_of", (None, 1)), ("group_texts", (None, False))):
                if getattr(self.args, name) not in unchanged:
                    # With torch_compile, a multiple that was left out has another default
                    remedy = "set it to 1" if "multiple" in name and self.args.torch_compile else "leave it out"
                    raise ValueError(
                        f"{name} changes the padding, which entropy_tokens='all' counts as words; {remedy}, or "
                        "choose other entropy_tokens."
                    )

    def check_batches(self) -> None:
        """
        Applies the rules of the command line to a Trainer that is made without it.

        Raises:
            `ValueError`: see `training_tier.options.compatibility`.
        """
        launch = Launch(self.args.world_size, self.is_fsdp_enabled, self.is_deepspeed_enabled)
        views = 1 if self.train_dataset is None else self.train_dataset.options.image_views
        refuse(
            rules_on_negatives(self.args, launch),
            rules_on_chunks(self.args, launch, views),
            rules_on_text_groups(self.args, launch),
        )
        if self.is_siglip and views > 1:
            raise ValueError(
                f"image_views={views} does not work with SigLIP, whose loss does not compare images with each other; "
                "leave it out."
            )
        steps, pairs = self.args.gradient_accumulation_steps, self.args.train_batch_size
        if steps > 1 and self.args.contrastive_chunk_size is None:
            logger.warning(
                f"gradient_accumulation_steps={steps} does not add negatives: a pair is contrasted with the "
                f"{pairs * launch.processes} pairs of its own accumulation step. For more, raise "
                f"--per_device_train_batch_size and add --contrastive_chunk_size {pairs}."
            )

    def check_order(self) -> None:
        super().check_order()
        options = PairOptions() if self.train_dataset is None else self.train_dataset.options
        strategy, drawn_by = self.args.train_sampling_strategy, drawing_option(options)
        refuse(rules_on_order(strategy, avoid_duplicates=self.avoid_duplicates, drawn_by=drawn_by))

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
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

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self._evaluated is None:
            self.add_terms(outputs, len(inputs["input_ids"]))
        else:
            self._eval_terms = {term: outputs[term].detach() for term in self.terms}
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        kept = ("image_embeds", "text_embeds")
        ignored = [output.name for output in fields(TierCLIPOutput) if output.name not in kept]
        return super().prediction_step(model, inputs, prediction_loss_only, [*ignored, *(ignore_keys or ())])

    def add_terms(self, outputs: Mapping[str, torch.Tensor], pairs: int) -> None:
        terms = torch.stack([outputs[term].detach().float() for term in self.terms])
        self._terms.append(torch.cat([terms * pairs, terms.new_tensor([pairs])]))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self._train_batch_size * self.args.world_size
        if self.avoid_duplicates:
            return DistinctTextSampler(dataset, batch_size, self.args.seed)
        if self.args.train_sampling_strategy == "group_by_length":
            multiple = self.args.pad_to_multiple_of or 1
            return SimilarLengthSampler(dataset, self.processing_class.tokenizer, batch_size, multiple, self.args.seed)
        return super()._get_train_sampler(train_dataset)

    def find_excessive_settings(self, bad_loss: bool) -> str | None:
        """The weights and the temperature of the entropies, if the contrastive term is finite; see the base."""
        config = self.model.config
        names = ("token_entropy_weight", "patch_entropy_weight", "evidence_entropy_weight")
        weights = {name: getattr(config, name) for name in names if getattr(config, name)}
        largest = max(weights.values(), default=0.0) / min(1.0, config.entropy_temperature)
        contrastive = self.sum_terms()[0].item()
        if not weights or not math.isfinite(contrastive) or not (bad_loss or largest > EXCESSIVE_WEIGHT):
            return None
        settings = weights | {"entropy_temperature": config.entropy_temperature}
        return ", ".join(f"{name}={value:g}" for name, value in settings.items())

    def sum_terms(self) -> torch.Tensor:
        """Of all processes since the last log entry: each term times its pairs, and last the number of pairs."""
        return self.accelerator.reduce(torch.stack(self._terms).sum(dim=0), "sum")

    def pop_terms(self) -> dict[str, float]:
        """Mean of each term over the pairs of all processes since the last call. Every process has to call this."""
        sums = self.sum_terms()
        self._terms.clear()
        return dict(zip(self.terms, (sums[:-1] / sums[-1]).tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms:
            logs |= self.pop_terms()
            scale = whole_tensor(self.accelerator.unwrap_model(self.model).logit_scale.detach())
            logs["logit_scale"] = scale.exp().item()
            if self.is_siglip:
                bias = whole_tensor(self.accelerator.unwrap_model(self.model).logit_bias.detach())
                logs["logit_bias"] = bias.item()
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
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
        # Sums of other terms, of a run that resumes with another loss, cannot be joined to these.
        kept = [terms for terms in sums["terms"] if len(terms) == len(self.terms) + 1]
        self._terms = [torch.tensor(terms, device=self.args.device) for terms in kept]

    def zero_shot_auroc(self, dataset: PairDataset) -> dict[str, float]:
        """
        See [`evaluation_tier.scoring.zeroshot.zero_shot_auroc`]. The main process computes it and sends it to all. A
        finding without labels in the data set is left out, with a warning.
        """
        records = dataset.all_columns
        findings = [finding for finding in self.prompts if finding in records.column_names]
        if "image" not in records.column_names:
            findings = []
        missing = [finding for finding in self.prompts if finding not in findings]
        if missing:
            reason = "labels" if "image" in records.column_names else "images (they are streamed)"
            logger.warning(f"Without {reason} in the evaluated records, the AUROC is left out: {', '.join(missing)}.")
        if not findings:
            return {}
        result: list[dict | None] = [None]
        with self.whole_model() as model, fail_together():
            if self.accelerator.is_main_process:
                model.to(self.args.device)
                features, batch_size = dataset.features, self.args.eval_batch_size
                embedded = None if features is None else embed_features(model, features, batch_size)
                with torch.autocast(model.device.type, enabled=False):
                    result[0] = zero_shot_auroc(
                        model,
                        self.processing_class,
                        records,
                        findings,
                        self.prompts,
                        batch_size=batch_size,
                        embedded=embedded,
                    )
        return broadcast_object_list(result)[0]
