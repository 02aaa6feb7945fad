"""
The mathematics of TIER (Palepu & Beam 2023) on tensors: the two entropy terms, and their sum with the contrastive
term of `contrastive_loss_tier.py`.

Shapes: B texts and their B images, T token positions, P patches, D dimensions of the common space.
    token_embeds (B, T, D)    patch_embeds (B, P, D)    similarity (B, T, P)    token_mask (B, T)

Every mean is over the global batch; `global_batch_tier.py` exchanges data between the processes for it.
"""

import math
from collections.abc import Sequence

import torch

from .global_batch_tier import by_image, mean_over_processes

# Below every logit, yet far enough from the limit of float32 that subtracting the largest logit cannot overflow.
# Minus infinity would make the gradient NaN.
MASKED_LOGIT = torch.finfo(torch.float32).min / 2

# Added after the softmax by the authors' code (Modeling/utils.py:90-98 at ce1e171).
REFERENCE_EPS = 1e-7


def attended_tokens(input_ids: torch.Tensor, pad_token_id: int | None, eos_token_id: int | None) -> torch.Tensor:
    """
    The attention mask of texts that came without one: everything but the padding. Where the EOS token also pads, the
    first EOS belongs to the text.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, tokens)`): Token ids.
        pad_token_id (`int`, *optional*): `None` for texts without padding.
        eos_token_id (`int`, *optional*): Matters only where it equals `pad_token_id`.

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`: long, 1 for attended tokens.
    """
    if pad_token_id is None:
        return torch.ones_like(input_ids)
    is_pad = input_ids == pad_token_id
    if pad_token_id != eos_token_id:
        return (~is_pad).long()
    return (is_pad.cumsum(-1) - is_pad.long() == 0).long()


def counted_tokens(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, eos_token_id: int | None, entropy_tokens: str
) -> torch.Tensor:
    """
    The token positions that the entropies count.

    CLIP's texts consist of BOS, words, EOS and padding, and EOS may also pad. So the attention mask tells the padding;
    BOS is the first attended token, and EOS the one that `CLIPTextModel` pools. BERT's texts consist of [CLS], words,
    [SEP] and padding, and its configuration does not name [SEP]: it is the last attended token.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, tokens)`): Token ids.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 for attended tokens. Without it, everything up to and including the first EOS is attended.
        eos_token_id (`int`, *optional*):
            As in CLIP's text configuration; 2 marks an old checkpoint, where EOS is the highest id of each text.
            `None` for BERT and similar encoders, which need the `attention_mask`.
        entropy_tokens (`str`): `"words"`, `"attended"` or `"all"`, see [`TierCLIPConfig`].

    Returns:
        `torch.Tensor` of shape `(batch, tokens)`: bool.
    """
    if entropy_tokens == "all":
        return torch.ones_like(input_ids, dtype=torch.bool)
    if eos_token_id is None:
        is_eos = attention_mask.bool() & (attention_mask.flip(-1).cumsum(-1).flip(-1) == 1)  # the last attended token
    else:
        is_eos = input_ids == (input_ids.amax(-1, keepdim=True) if eos_token_id == 2 else eos_token_id)
    if attention_mask is None:
        attended = is_eos.cumsum(-1) - is_eos.long() == 0
    else:
        attended = attention_mask.bool()
    if entropy_tokens == "attended":
        return attended
    ends = torch.stack([attended.int().argmax(-1), is_eos.int().argmax(-1)], dim=-1)  # (batch, 2) BOS, EOS
    return attended.scatter(-1, ends, False)


def token_patch_similarity(
    token_embeds: torch.Tensor, patch_embeds: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """
    Similarity of each token of a text with each patch of its own image (matched pairs only).

    Args:
        token_embeds (`torch.Tensor` of shape `(texts, tokens, dim)`):
            L2-normalised. The texts are as many as the images or a multiple: all first texts of the images, then all
            second ones, and so on.
        patch_embeds (`torch.Tensor` of shape `(images, patches, dim)`): L2-normalised.
        temperature (`float`, *optional*, defaults to 1.0): Divides the cosines.

    Returns:
        `torch.Tensor` of shape `(texts, tokens, patches)`: In [-1 / temperature, 1 / temperature].
    """
    images, (texts, tokens) = len(patch_embeds), token_embeds.shape[:2]
    if texts > images:  # one product for all texts of an image: copies of its patches would cost more
        token_embeds = by_image(token_embeds, texts // images).reshape(images, -1, token_embeds.shape[2])
    similarity = torch.bmm(token_embeds, patch_embeds.transpose(1, 2))
    if texts > images:
        similarity = by_image(similarity.reshape(texts, tokens, -1), images)
    return similarity if temperature == 1.0 else similarity / temperature


def masked_entropy(
    logits: torch.Tensor, mask: torch.Tensor | None = None, dim: int = -1, eps: float = 0.0
) -> torch.Tensor:
    """
    Shannon entropy in nats of `softmax(logits)` along `dim`, with finite values and gradients for any finite logits.

    Args:
        logits (`torch.Tensor`): Any dtype; computed in float32.
        mask (`torch.Tensor`, *optional*):
            bool, broadcastable to `logits`; where it is False the probability is 0. A slice without any True gives
            the entropy of a uniform distribution and a gradient of 0: leave it out of means.
        dim (`int`, *optional*, defaults to -1): The dimension of the distribution.
        eps (`float`, *optional*, defaults to 0.0): Added to each probability after the softmax, as the authors did.

    Returns:
        `torch.Tensor`: `logits` without `dim`, in [0, ln K] for K unmasked elements.
    """
    logits = logits.float()
    if mask is not None:
        logits = logits.masked_fill(~mask, MASKED_LOGIT)
    if eps:
        shifted = logits.softmax(dim) + eps
        return -(shifted * shifted.log()).sum(dim)
    log_probs = logits.log_softmax(dim)
    return -(log_probs.exp() * log_probs).sum(dim)


def entropy_sums(
    similarity: torch.Tensor, token_mask: torch.Tensor | None = None, normalize: bool = False, eps: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The sums and counts behind the two means of [`token_and_patch_entropy`], with the same arguments.

    Returns:
        `tuple` of two tensors of shape `(2,)`: the sums (nats) over the tokens and over the patches of this process,
        and the numbers of those tokens and patches.
    """
    batch, tokens, patches = similarity.shape
    if token_mask is None:
        token_mask = torch.ones(batch, tokens, dtype=torch.bool, device=similarity.device)
    per_token = masked_entropy(similarity, dim=2, eps=eps)  # (batch, tokens)
    per_patch = masked_entropy(similarity, token_mask.unsqueeze(2), dim=1, eps=eps)  # (batch, patches)
    if normalize:
        per_token = per_token / math.log(max(patches, 2))
        per_patch = per_patch / token_mask.sum(1, keepdim=True).clamp(min=2).log()
    text_mask = token_mask.any(1, keepdim=True)  # (batch, 1)
    sums = torch.stack([(per_token * token_mask).sum(), (per_patch * text_mask).sum()])
    counts = torch.stack([token_mask.sum(), text_mask.sum() * patches])
    return sums, counts


def token_and_patch_entropy(
    similarity: torch.Tensor, token_mask: torch.Tensor | None = None, normalize: bool = False, eps: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The two penalties of TIER (authors' code, Modeling/utils.py:87-141 at ce1e171, where no token is masked).

    A text without a counted token does not enter either mean.

    Args:
        similarity (`torch.Tensor` of shape `(batch, tokens, patches)`): Of matched pairs.
        token_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): bool, True for the tokens that count.
        normalize (`bool`, *optional*, defaults to `False`): Divide by ln K; an entropy over one element stays 0.
        eps (`float`, *optional*, defaults to 0.0): See [`masked_entropy`].

    Returns:
        `tuple` of two scalars in nats (in [0, 1] with `normalize`): the mean over tokens of the entropy over patches,
        and the mean over patches of the entropy over tokens.
    """
    token_entropy, patch_entropy = mean_over_processes(*entropy_sums(similarity, token_mask, normalize, eps)).unbind()
    return token_entropy, patch_entropy


def total_loss(contrastive: torch.Tensor, entropies: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """
    The loss of TIER: the contrastive term plus each entropy times its weight. An entropy of weight 0 is left out, so
    that a loss without penalties is the contrastive term to the last bit.

    Args:
        contrastive (`torch.Tensor`): Scalar, nats; see `contrastive_loss_tier.py`.
        entropies (`Sequence[torch.Tensor]`): Scalars, nats: of the tokens, then of the patches.
        weights (`Sequence[float]`): In the same order.

    Returns:
        `torch.Tensor`: Scalar, nats.
    """
    loss = contrastive
    for weight, entropy in zip(weights, entropies, strict=True):
        if weight:
            loss = loss + weight * entropy
    return loss
