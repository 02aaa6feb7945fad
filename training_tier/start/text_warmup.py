"""
A start for the text tower of a model with random weights: before the training, it learns from the reports alone which
texts belong together.
"""

import math
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from processing_tier.progress import progress
from processing_tier.reports.sentences import split_sentences

LEARNING_RATE = 1e-3

WARMUP_SHARE = 0.1

MAX_GRAD_NORM = 1.0


def halve(impression: list[str], findings: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """
    Two texts about the same study: half of the time impression and findings, otherwise two random halves of all
    sentences.

    Args:
        impression (`list[str]`), findings (`list[str]`): the sentences of each section; at least two in all.
        rng (`np.random.Generator`): the source of all randomness.
    """
    sentences = impression + findings
    if impression and findings and rng.random() < 0.5:
        return " ".join(impression), " ".join(findings)
    shuffled = [sentences[i] for i in rng.permutation(len(sentences))]
    middle = len(shuffled) // 2
    return " ".join(shuffled[:middle]), " ".join(shuffled[middle:])


def warm_up_text(
    model: TierCLIPModel | TierDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    records: datasets.Dataset,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
) -> list[float]:
    """
    Trains the text tower, in place, to match the two halves of each report (symmetric cross-entropy, as between images
    and texts). At first, two random towers teach each other nothing. A text tower that already separates "enlarged
    heart" from "normal heart" gives the image tower a target. Labels are not used. Every process computes the same.

    Args:
        model ([`TierCLIPModel`] or [`TierDualEncoderModel`]): its text tower and text projection are trained.
        tokenizer ([`PreTrainedTokenizerBase`]): of the model.
        records (`datasets.Dataset`): with the columns `impression` and `findings`.
        epochs (`int`): passes over the reports.
        batch_size (`int`, *optional*, defaults to 64): reports of one step, which are contrasted.
        seed (`int`, *optional*, defaults to 0): of order and halves.

    Returns:
        `list[float]`: the mean loss of each epoch, nats.

    Raises:
        `ValueError`: fewer reports with two sentences than one batch.
    """
    reports = split_reports(records)
    batches = len(reports) // batch_size
    if batches < 1:
        raise ValueError(
            f"text_warmup_epochs needs at least {batch_size} reports of two sentences, but there are {len(reports)}; "
            "leave it out."
        )
    towers = nn.ModuleList([model.text_model, model.text_projection])
    optimizer = torch.optim.AdamW(towers.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = cosine_schedule(optimizer, epochs * batches)
    rng = np.random.default_rng(seed)
    was_training = model.training
    model.train()
    losses = []
    with progress(description="text warm-up", unit="step", total=epochs * batches) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(reports))[: batches * batch_size].reshape(batches, batch_size)
            total = 0.0
            for batch in order:
                halves = [halve(impression, findings, rng) for impression, findings in (reports[i] for i in batch)]
                loss = loss_of_halves(model, tokenizer, halves)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(towers.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            losses.append(total / batches)
    model.zero_grad()
    model.train(was_training)
    return losses


def split_reports(records: datasets.Dataset) -> list[tuple[list[str], list[str]]]:
    """The sentences of impression and of findings, for each report with at least two sentences."""
    reports = (
        (split_sentences(record["impression"]), split_sentences(record["findings"]))
        for record in records.select_columns(["impression", "findings"])
    )
    return [(impression, findings) for impression, findings in reports if len(impression) + len(findings) > 1]


def cosine_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    warmup = max(1, round(WARMUP_SHARE * steps))
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
    )


def loss_of_halves(
    model: TierCLIPModel | TierDualEncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
) -> torch.Tensor:
    """Symmetric cross-entropy between the first and the second halves. `logit_scale` is not trained."""

    def embed(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        features = model.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return nn.functional.normalize(features, dim=-1)

    first, second = zip(*pairs, strict=True)
    logits = model.logit_scale.detach().exp() * embed(list(first)) @ embed(list(second)).T
    target = torch.arange(len(pairs), device=model.device)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
