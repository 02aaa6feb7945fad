"""
Gradient caching (Gao et al. 2021, arXiv:2101.06983): the exact gradients of a batch whose activations do not fit into
memory.

The contrastive loss needs all embeddings of a batch at once, but not all the activations behind them. So there are
three steps: the embeddings, chunk by chunk and without a graph; the loss and its gradient for each embedding; each
chunk again, with a graph that carries these gradients to the parameters. The entropy terms belong to single pairs:
each chunk adds its terms, weighted by the numbers of tokens and patches of the whole batch. The evidence entropy also
needs the mean of all texts, which is known after the first pass.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from modeling_tier.base_tier import TierCLIPOutput
from modeling_tier.global_batch_tier import Pairs, by_image, gather_pairs, mean_over_processes, mean_row, world_size
from modeling_tier.losses_tier import total_loss


class FirstPass(NamedTuple):
    """The results of the pass without a graph, for the chunks of a batch."""

    images: list[torch.Tensor]  # embeddings of each chunk
    texts: list[torch.Tensor]
    entropy_counts: torch.Tensor  # of tokens, patches and pairs, over the batch
    random_states: list[tuple]  # before each chunk


class BatchGradients(NamedTuple):
    """The gradients of the loss of a batch, except for those of the towers' parameters."""

    images: torch.Tensor  # of the embeddings, (batch, dim)
    texts: torch.Tensor  # in the order of `Pairs`
    entropy_sums: torch.Tensor | None  # `None` without entropy weights
    logit_parameters: list[torch.Tensor]  # of the model's `logit_parameters`


def split_batch(inputs: dict, chunk_size: int) -> list[dict]:
    """
    A batch in chunks of nearly equal sizes, at most `chunk_size` images each. The texts of an image stay with it. An
    input without a row for each image or text goes into every chunk.
    """
    texts, per_image = len(inputs["input_ids"]), inputs.get("texts_per_image") or 1
    images = texts // per_image
    count = -(-images // chunk_size)

    def split(value: Any) -> Sequence[Any]:
        if not torch.is_tensor(value) or not value.ndim or len(value) not in (images, texts):
            return [value] * count
        rows = value.unflatten(0, (-1, images))  # with one row of images, or as many as an image has texts
        return [chunk.flatten(0, 1) for chunk in rows.tensor_split(count, dim=1)]

    parts = [split(value) for value in inputs.values()]
    return [dict(zip(inputs, chunk, strict=True)) for chunk in zip(*parts, strict=True)]


def backward_in_chunks(
    model: nn.Module,
    inputs: dict,
    chunk_size: int,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> dict[str, torch.Tensor]:
    """
    Adds to the gradients of the parameters what `model(**inputs, return_loss=True).loss.backward()` adds, and holds
    the activations of only one chunk. It costs one more forward pass.

    Dropout draws the same in both passes of a chunk. The buffers (the running statistics of batch norms) are updated
    only in the second. In training, a batch norm sees the images of one chunk at a time, so its gradients are those of
    such chunks and not of the whole batch.

    Args:
        model (`nn.Module`): [`TierCLIPModel`], [`TierSiglipModel`] or [`TierDualEncoderModel`]. In
            `DistributedDataParallel`, every process has to call this, and gradients are averaged once, in the last
            chunk. With FSDP2, gradients are reduced in each chunk.
        inputs (`dict`): the batch of this process, as the model takes it.
        chunk_size (`int`): pairs, or images with their texts, whose activations fit into memory.
        backward (`Callable`, *optional*): called with a scalar instead of the scalar's `backward`.

    Returns:
        `dict`: `loss`, `contrastive_loss`, `token_entropy`, `patch_entropy` and `evidence_entropy` as the model gives
            them, without graph.

    Raises:
        `ValueError`: with FSDP, the processes have different numbers of chunks.
    """
    # The first pass must not wait for the other processes, as DistributedDataParallel does.
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
    texts_per_image = inputs.get("texts_per_image", 0)
    per_image = texts_per_image or 1
    text_groups = inputs.pop("text_groups", None)
    if text_groups is not None:
        text_groups = by_image(text_groups, per_image)
    chunks = split_batch(inputs, chunk_size)
    if isinstance(model, FSDPModule):
        check_equal_counts(len(chunks), device=inputs["input_ids"].device)

    first = embed_chunks(plain, chunks)
    # A chunk's sums times these factors are its share of the means over the batch.
    factors = mean_over_processes(torch.ones_like(first.entropy_counts, dtype=torch.float), first.entropy_counts)
    weights = plain.entropy_weights
    texts = torch.cat([by_image(texts, per_image) for texts in first.texts])
    pairs = Pairs(torch.cat(first.images).float(), texts.float(), text_groups, each_group_once=texts_per_image > 0)
    contrastive_loss, *of_contrastive = contrastive_gradients(plain, pairs, rows=chunk_size)
    image_gradients, text_gradients, logit_gradients = of_contrastive
    of_entropies = factors * torch.tensor(weights, device=factors.device) if any(weights) else None
    gradients = BatchGradients(image_gradients, text_gradients, of_entropies, logit_gradients)
    text_mean = mean_row(pairs.texts) if plain.config.evidence_entropy_weight else None
    entropies = (add_gradients(model, chunks, first, gradients, backward, text_mean) * factors).unbind()
    return {
        "loss": total_loss(contrastive_loss, entropies, weights),
        "contrastive_loss": contrastive_loss,
        "token_entropy": entropies[0],
        "patch_entropy": entropies[1],
        "evidence_entropy": None if text_mean is None else entropies[2],
    }


def embed_chunks(model: nn.Module, chunks: list[dict]) -> FirstPass:
    """The first pass: embeddings and counts without a graph. The buffers of the model stay as they are."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    images, texts, counts, random_states = [], [], [], []
    with torch.no_grad():
        for chunk in chunks:
            random_states.append((torch.get_rng_state(), *get_device_states(chunk["input_ids"])))
            outputs = model(**chunk, return_entropy_sums=True)
            images.append(outputs.image_embeds)
            texts.append(outputs.text_embeds)
            counts.append(outputs.entropy_counts)
        for buffer, before in buffers:
            buffer.copy_(before)
    torch.clear_autocast_cache()  # it holds weights that were cast without a graph
    return FirstPass(images, texts, torch.stack(counts).sum(dim=0), random_states)


def add_gradients(
    model: nn.Module,
    chunks: list[dict],
    first: FirstPass,
    gradients: BatchGradients,
    backward: Callable[[torch.Tensor], None],
    text_mean: torch.Tensor | None,
) -> torch.Tensor:
    """
    The second pass: each chunk with its graph, through which the gradients reach the parameters. Returns the sums of
    the entropies over the chunks, without graph.
    """
    is_distributed = isinstance(model, DistributedDataParallel)
    plain = model.module if is_distributed else model
    sizes = [len(chunk) for chunk in first.images]
    of_texts = gradients.texts.split([len(chunk) for chunk in first.texts])
    of_texts = [by_image(chunk, size) for chunk, size in zip(of_texts, sizes, strict=True)]  # as in a batch
    of_chunks = zip(gradients.images.split(sizes), of_texts, strict=True)
    sums = []
    for i, (chunk, state, of_chunk) in enumerate(zip(chunks, first.random_states, of_chunks, strict=True)):
        torch.set_rng_state(state[0])
        set_device_states(*state[1:], device_type=chunk["input_ids"].device.type)
        is_last = i == len(chunks) - 1
        with model.no_sync() if is_distributed and not is_last else contextlib.nullcontext():
            outputs = model(**chunk, return_entropy_sums=True, text_mean=text_mean)
            sums.append(outputs.entropy_sums.detach())
            scalar = surrogate(outputs, of_chunk, gradients.entropy_sums)
            if is_last:
                # logit_scale here, where DistributedDataParallel waits for the gradients of all parameters. (FSDP
                # keeps parameters outside of layers whole from a forward pass to the end of the backward pass.)
                for name, gradient in zip(plain.logit_parameters, gradients.logit_parameters, strict=True):
                    scalar = scalar + (getattr(plain, name) * gradient).sum()
            backward(scalar)
    return torch.stack(sums).sum(dim=0)


def surrogate(
    outputs: TierCLIPOutput,
    of_embeddings: tuple[torch.Tensor, torch.Tensor],
    of_entropy_sums: torch.Tensor | None,
) -> torch.Tensor:
    """A scalar whose gradients are the share of one chunk in the gradients of the loss."""
    of_images, of_texts = of_embeddings
    scalar = (outputs.image_embeds * of_images).sum() + (outputs.text_embeds * of_texts).sum()
    return scalar if of_entropy_sums is None else scalar + (outputs.entropy_sums * of_entropy_sums).sum()


def check_equal_counts(count: int, device: torch.device) -> None:
    """
    Raises:
        `ValueError`: in every process, when their numbers of chunks differ.
    """
    extremes = torch.tensor([count, -count], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    most, least = extremes.tolist()
    if most != -least:
        raise ValueError(
            f"The processes have from {-least} to {most} chunks in a step. FSDP needs the same number in each; use "
            "--dataloader_drop_last true."
        )


def contrastive_gradients(
    model: nn.Module, pairs: Pairs, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """
    The model's contrastive loss of all processes, and its gradients. The logits, a square of the batch, are computed
    in float32 and for `rows` images at a time, so that memory grows linearly with the batch.

    Args:
        model (`nn.Module`): computes the loss by `contrast_share`.
        pairs ([`Pairs`]): of this process.
        rows (`int`): images whose logits are computed at a time.

    Returns:
        `tuple`: the loss, and the gradients of the images, of the texts and of the model's `logit_parameters`.
    """
    all_pairs, first = gather_pairs(pairs)
    per_image = pairs.texts_per_image
    leaves = [t.detach().requires_grad_() for t in (pairs.images, pairs.texts, all_pairs.images, all_pairs.texts)]
    all_pairs = all_pairs._replace(images=leaves[2], texts=leaves[3])
    parameters = [getattr(model, name).detach().float().requires_grad_() for name in model.logit_parameters]
    total = parameters[0].new_zeros(())
    with torch.enable_grad(), torch.autocast(total.device.type, enabled=False):
        for start in range(0, len(pairs.images), rows):
            of_texts = slice(start * per_image, (start + rows) * per_image)
            own_rows = Pairs(leaves[0][start : start + rows], leaves[1][of_texts])
            loss = model.contrast_share(own_rows, all_pairs, first + start, *parameters)
            loss.backward()
            total += loss.detach()
    # SigLIP's loss compares its own texts with the gathered images: the other two do not have a gradient.
    of_leaves = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    gradients = []
    for own, gathered, begin in zip(of_leaves[:2], of_leaves[2:], (first, first * per_image), strict=True):
        if world_size() > 1:
            dist.all_reduce(gathered)
        gradients.append(own + gathered[begin : begin + len(own)])
    return total, *gradients, [parameter.grad for parameter in parameters]
