"""A start for the text tower of a model with random weights: it learns from the reports alone which text is akin."""

import math

import datasets
import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from processing_tier.reports.sentences import split_sentences

LEARNING_RATE = 1e-3

WARMUP_SHARE = 0.1

MAX_GRAD_NORM = 1.0


def halve(impression: list[str], findings: list[str], rng: np.random.Generator) -> tuple[str, str]:
    """
    Two texts about the same study: impression and findings every second time, two random halves of all sentences
    otherwise.

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
    Trains the text tower, in place, to tell which half of a report belongs to which (symmetric cross-entropy, as
    between images and texts). Two random towers teach each other nothing at first; a text tower that already keeps
    "enlarged heart" apart from "normal heart" gives the image tower something to aim at. No label is used.

    Every process of a distributed run computes the same.

    Args:
        model ([`TierCLIPModel`] or [`TierDualEncoderModel`]): its text tower and text projection are trained.
        tokenizer ([`PreTrainedTokenizerBase`]): of the model.
        records (`datasets.Dataset`): with the columns `impression` and `findings`.
        epochs (`int`): passes over the reports.
        batch_size (`int`, *optional*, defaults to 64): reports told apart in one step.
        seed (`int`, *optional*, defaults to 0): of order and halves.

    Returns:
        `list[float]`: the mean loss of each epoch, nats.

    Raises:
        `ValueError`: fewer than two batches' worth of reports with two sentences.
    """
    sections = [
        (split_sentences(record["impression"]), split_sentences(record["findings"]))
        for record in records.select_columns(["impression", "findings"])
    ]
    sections = [(impression, findings) for impression, findings in sections if len(impression) + len(findings) > 1]
    batches = len(sections) // batch_size
    if batches < 1:
        raise ValueError(
            f"{len(sections)} reports of two sentences or more are too few for text_warmup_epochs; leave it out."
        )
    towers = nn.ModuleList([model.text_model, model.text_projection])
    optimizer = torch.optim.AdamW(towers.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    steps = epochs * batches
    warmup = max(1, round(WARMUP_SHARE * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    scale = model.logit_scale.detach().exp()
    target = torch.arange(batch_size, device=model.device)

    def embed(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        features = model.get_text_features(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        return nn.functional.normalize(features, dim=-1)

    rng = np.random.default_rng(seed)
    was_training = model.training
    model.train()
    losses = []
    with tqdm(total=steps, desc="text warm-up", unit="step", disable=None) as bar:
        for _ in range(epochs):
            order = rng.permutation(len(sections))[: batches * batch_size].reshape(batches, batch_size)
            total = 0.0
            for batch in order:
                first, second = zip(*(halve(*sections[i], rng) for i in batch), strict=True)
                logits = scale * embed(list(first)) @ embed(list(second)).T
                loss = (
                    nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
                ) / 2
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(towers.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                schedule.step()
                total += loss.item()
                bar.update()
            losses.append(total / batches)
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    model.zero_grad()
    model.train(was_training)
    return losses
