"""
Gradient caching (Gao et al. 2021, arXiv:2101.06983): the gradients of a batch whose activations do not fit into
memory, exactly.

The contrastive loss needs all the embeddings of a batch at once, but not all the activations that lead to them. So the
embeddings come first, chunk by chunk and without a graph; then the loss, and with it the gradient of each embedding;
then each chunk once more, with the graph, through which that gradient goes on to the parameters. The entropy terms are
of single pairs: each chunk adds its own, weighted by the numbers of tokens and patches of the whole batch.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import get_device_states, set_device_states

from modeling_tier.global_batch_tier import Pairs, gather_pairs, mean_over_processes, world_size
from modeling_tier.losses_tier import summed_cross_entropy, total_loss


def split_batch(inputs: dict, chunk_size: int) -> list[dict]:
    """
    A batch in chunks of nearly equal sizes, at most `chunk_size` pairs each. What has no row for each pair goes into
    all of them.
    """
    pairs = len(inputs["input_ids"])
    count = -(-pairs // chunk_size)
    parts = [
        value.tensor_split(count) if torch.is_tensor(value) and value.ndim and len(value) == pairs else [value] * count
        for value in inputs.values()
    ]
    return [dict(zip(inputs, chunk, strict=True)) for chunk in zip(*parts, strict=True)]


def backward_in_chunks(
    model: nn.Module,
    inputs: dict,
    chunk_size: int,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> dict[str, torch.Tensor]:
    """
    Adds to the gradients of the parameters what `model(**inputs, return_loss=True).loss.backward()` adds, with no more
    activations in memory than those of one chunk. It takes a forward pass more.

    Dropout draws the same in both passes of a chunk, and the buffers (the running statistics of batch norms) are
    updated in the second one alone. In training, a batch norm sees the images of one chunk at a time, as it sees those
    of one process: with one the gradients are not those of the whole batch, but those of such chunks.

    Args:
        model (`nn.Module`): [`TierCLIPModel`] or [`TierDualEncoderModel`], or one in `DistributedDataParallel`, whose
            processes then have to call this together; their gradients are averaged once, in the last chunk. Or one
            that FSDP2 shards, whose gradients are reduced in each chunk.
        inputs (`dict`): the batch of this process, as the model takes it.
        chunk_size (`int`): pairs whose activations fit into memory.
        backward (`Callable`, *optional*): what to do with a scalar instead of calling its `backward`.

    Returns:
        `dict`: `loss`, `contrastive_loss`, `token_entropy` and `patch_entropy` as the model gives them, without graph.

    Raises:
        `ValueError`: FSDP, which gathers weights in each chunk, and the numbers of chunks differ between processes.
    """
    # The first pass needs nothing of what DistributedDataParallel does, which would wait for the other processes.
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
    text_groups = inputs.pop("text_groups", None)
    chunks = split_batch(inputs, chunk_size)
    if isinstance(model, FSDPModule):
        check_equal_counts(len(chunks), device=inputs["input_ids"].device)

    # 1. The embeddings, without graph
    buffers = [(buffer, buffer.clone()) for buffer in plain.buffers()]
    random_states, images, texts, sums, counts = [], [], [], [], []
    with torch.no_grad():
        for chunk in chunks:
            random_states.append((torch.get_rng_state(), *get_device_states(chunk["input_ids"])))
            outputs = plain(**chunk, return_entropy_sums=True)
            images.append(outputs.image_embeds)
            texts.append(outputs.text_embeds)
            sums.append(outputs.entropy_sums)
            counts.append(outputs.entropy_counts)
        for buffer, before in buffers:
            buffer.copy_(before)
    torch.clear_autocast_cache()  # of weights that were cast without a graph
    sums, counts = torch.stack(sums).sum(dim=0), torch.stack(counts).sum(dim=0)
    # Each of a chunk's two sums times its factor is its share of the means over the batch.
    factors = mean_over_processes(torch.ones_like(sums), counts)

    # 2. The loss of all pairs, and the gradients of the embeddings
    sizes = [len(chunk) for chunk in images]
    contrastive_loss, image_gradients, text_gradients, scale_gradient = contrastive_gradients(
        torch.cat(images).float(), torch.cat(texts).float(), plain.logit_scale.detach(), chunk_size, text_groups
    )

    # 3. Each chunk once more, with its graph
    weights = plain.entropy_weights
    entropy_gradients = factors * torch.tensor(weights, device=factors.device)
    gradients = zip(image_gradients.split(sizes), text_gradients.split(sizes), strict=True)

    def surrogate(chunk: dict, image_gradient: torch.Tensor, text_gradient: torch.Tensor) -> torch.Tensor:
        """A scalar that has the gradients of the loss as far as they come from one chunk."""
        outputs = model(**chunk, return_entropy_sums=True)
        scalar = (outputs.image_embeds * image_gradient).sum() + (outputs.text_embeds * text_gradient).sum()
        return scalar + (outputs.entropy_sums * entropy_gradients).sum() if any(weights) else scalar

    for i, (chunk, state, gradient) in enumerate(zip(chunks, random_states, gradients, strict=True)):
        torch.set_rng_state(state[0])
        set_device_states(*state[1:], device_type=chunk["input_ids"].device.type)
        is_last = i == len(chunks) - 1
        wait = isinstance(model, DistributedDataParallel) and not is_last
        with model.no_sync() if wait else contextlib.nullcontext():
            scalar = surrogate(chunk, *gradient)
            # In the last chunk, since there DistributedDataParallel waits for the gradients of all parameters. (FSDP
            # keeps the parameters outside of layers whole from a forward pass to the end of the backward one.)
            backward(scalar + (plain.logit_scale * scale_gradient).sum() if is_last else scalar)

    token_entropy, patch_entropy = (sums * factors).unbind()
    return {
        "loss": total_loss(contrastive_loss, (token_entropy, patch_entropy), weights),
        "contrastive_loss": contrastive_loss,
        "token_entropy": token_entropy,
        "patch_entropy": patch_entropy,
    }


def check_equal_counts(count: int, device: torch.device) -> None:
    """
    Raises:
        `ValueError`: in all the processes, unless their counts of chunks are equal.
    """
    extremes = torch.tensor([count, -count], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    most, least = extremes.tolist()
    if most != -least:
        raise ValueError(
            f"The processes have from {-least} to {most} chunks in a step, and with FSDP they need the same number; "
            "use --dataloader_drop_last true."
        )


def contrastive_gradients(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    rows: int,
    text_groups: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    [`contrastive_loss`] of all processes, and its gradients. The logits, a square of the batch, are made in float32
    and `rows` rows at a time, so that their memory grows linearly too.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch, dim)`): of this process, L2-normalised.
        logit_scale (`torch.Tensor`): scalar.
        rows (`int`): of the logits at a time.
        text_groups (`torch.Tensor` of shape `(batch,)`, *optional*): see [`contrastive_loss`].

    Returns:
        `tuple`: the loss, and the gradients of the images, of the texts and of `logit_scale`.
    """
    processes = world_size()
    all_pairs, first = gather_pairs(Pairs(image_embeds, text_embeds, text_groups))
    leaves = [t.detach().requires_grad_() for t in (image_embeds, text_embeds, all_pairs.images, all_pairs.texts)]
    all_pairs = Pairs(*leaves[2:], all_pairs.groups)
    scale = logit_scale.detach().float().requires_grad_()
    total = scale.new_zeros(())
    with torch.enable_grad(), torch.autocast(scale.device.type, enabled=False):
        for start in range(0, len(image_embeds), rows):
            images, texts = (leaf[start : start + rows] for leaf in leaves[:2])
            groups = None if text_groups is None else text_groups[start : start + rows]
            loss = summed_cross_entropy(Pairs(images, texts, groups), all_pairs, first + start, scale)
            loss = loss * (processes / (2.0 * len(all_pairs.images)))  # as in contrastive_loss
            loss.backward()
            total += loss.detach()
    gradients = []
    for own, gathered in zip(leaves[:2], leaves[2:], strict=True):
        if processes > 1:
            dist.all_reduce(gathered.grad)
        gradients.append(own.grad + gathered.grad[first : first + len(own)])
    return total, *gradients, scale.grad
