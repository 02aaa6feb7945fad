"""
CLIP's contrastive term on tensors: with one text per image or several, with several views of an image, and over the
global batch, for which `global_batch_tier.py` exchanges data between the processes.
"""

import itertools

import torch
from torch import nn

from .global_batch_tier import Pairs, by_image, gather_pairs, group_sizes, world_size


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    text_groups: torch.Tensor | None = None,
    texts_per_image: int = 0,
) -> torch.Tensor:
    """
    CLIP's symmetric cross-entropy over the global batch: row i of the images belongs to row i of the texts.

    With `texts_per_image`, each text is a positive of its own, and texts that say the same count once together: a
    sentence that many reports repeat weighs as much as a rare one. With l_is the logit of image i and text s, and w_s
    one divided by the number of texts of the batch that say the same as s:

        image i:  log sum_s w_s exp(l_is) - the mean, over the distinct texts of i, of the mean logit of their copies
        text s:   the cross-entropy over the images, with the target spread evenly over those that have such a text

    The loss is half the mean over the images plus half the mean, weighted by w_s, over the texts. Where copies have
    equal embeddings, it is the loss of a batch that holds each distinct text once. Source: this project.

    On one process and without `texts_per_image`, the operations and their order are those of `CLIPModel`, so the
    result is equal to the last bit. With several processes, each compares its own rows with all rows, and never holds
    the whole matrix. The mean over the processes is the loss of the global batch.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): L2-normalised.
        text_embeds (`torch.Tensor` of shape `(texts, dim)`):
            L2-normalised; all first texts in the order of the images, then all second ones, and so on.
        logit_scale (`torch.Tensor`): The logarithm of the factor of the cosines, as `CLIPModel.logit_scale` is.
        text_groups (`torch.Tensor` of shape `(texts,)`, *optional*):
            int64, equal for texts that say the same. Their pairs are not negatives of one another. Without
            `texts_per_image`, each text counts: the target of each pair is spread evenly over the images, and over the
            texts, of all of them. Where their embeddings are equal to the last bit (the same tokens without dropout),
            the gradient then equals that of the plain loss.
        texts_per_image (`int`, *optional*, defaults to 0):
            Texts of each image, the same in all processes. 0 for one text per image, each of which counts.

    Returns:
        `torch.Tensor`: Scalar, nats.

    Raises:
        ValueError: The number of texts does not fit that of the images.
    """
    own = pair(image_embeds, text_embeds, text_groups, texts_per_image)
    processes = world_size()
    if processes == 1 and not texts_per_image:
        target = pair_target(own, slice(None))
        logits_per_text = torch.matmul(text_embeds, image_embeds.t()) * logit_scale.exp()  # (texts, images)
        caption_loss = nn.functional.cross_entropy(logits_per_text, target)
        image_loss = nn.functional.cross_entropy(logits_per_text.t(), target)
        return (caption_loss + image_loss) / 2.0

    all_pairs, first = gather_pairs(own)
    total = summed_cross_entropy(own, all_pairs, first, logit_scale)
    # Times the number of processes, because DistributedDataParallel averages the gradients over them.
    return total * (processes / (2.0 * len(all_pairs.images)))


def pair(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, text_groups: torch.Tensor | None, texts_per_image: int
) -> Pairs:
    """The pairs of a contrastive loss; see [`contrastive_loss`] for the arguments. ValueError for wrong numbers."""
    check_numbers(len(image_embeds), len(text_embeds), texts_per_image)
    if not texts_per_image:
        return Pairs(image_embeds, text_embeds, text_groups)
    groups = None if text_groups is None else by_image(text_groups, texts_per_image)
    return Pairs(image_embeds, by_image(text_embeds, texts_per_image), groups, each_group_once=True)


def check_numbers(images: int, texts: int, texts_per_image: int) -> None:
    """ValueError if so many images do not have so many texts."""
    if texts == (texts_per_image or 1) * images:
        return
    if not texts_per_image:
        raise ValueError(
            f"A loss needs one text per image, but there are {images} images and {texts} texts. Omit return_loss to "
            "compare every text with every image."
        )
    raise ValueError(
        f"texts_per_image={texts_per_image} needs {texts_per_image * images} texts for {images} images, but there are "
        f"{texts}."
    )


def views_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    image_views: int,
    text_groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The mean of [`contrastive_loss`] over all combinations of a view with the texts and of two views, as the authors
    intended (Modeling/utils.py:109-141 at ce1e171; their code repeats the first kind by mistake).

    Args:
        image_embeds (`torch.Tensor` of shape `(image_views * batch, dim)`): L2-normalised; all first views in the
            order of the texts, then all second views, and so on.
        text_embeds, logit_scale, text_groups: See [`contrastive_loss`].
        image_views (`int`): Views of each image.

    Returns:
        `torch.Tensor`: Scalar, nats.

    Raises:
        ValueError: The number of images is not `image_views` times that of the texts.
    """
    if len(image_embeds) != image_views * len(text_embeds):
        raise ValueError(
            f"image_views={image_views} needs {image_views * len(text_embeds)} images for {len(text_embeds)} texts, "
            f"but there are {len(image_embeds)}."
        )
    views = image_embeds.chunk(image_views)
    pairs = [(view, text_embeds) for view in views] + list(itertools.combinations(views, 2))
    return sum(contrastive_loss(*pair, logit_scale, text_groups) for pair in pairs) / len(pairs)


def summed_cross_entropy(own: Pairs, all_pairs: Pairs, first: int, logit_scale: torch.Tensor) -> torch.Tensor:
    """
    The cross-entropies of some images and their texts with all of them, summed over both directions. Divided by twice
    the number of all images, the sum over all images is [`contrastive_loss`].

    Args:
        own ([`Pairs`]): The rows to sum over; their groups are those of `all_pairs`.
        all_pairs ([`Pairs`]): All pairs, `own` among them.
        first (`int`): Index of the first image of `own` in `all_pairs`.
        logit_scale (`torch.Tensor`): As in [`contrastive_loss`].

    Returns:
        `torch.Tensor`: Scalar, nats.
    """
    scale = logit_scale.exp()
    logits_per_text = own.texts @ all_pairs.images.t() * scale
    logits_per_image = own.images @ all_pairs.texts.t() * scale
    if all_pairs.each_group_once:
        return summed_over_groups(logits_per_text, logits_per_image, all_pairs, first)
    target = pair_target(all_pairs, slice(first, first + len(own.texts)))
    caption_loss = nn.functional.cross_entropy(logits_per_text, target, reduction="sum")
    image_loss = nn.functional.cross_entropy(logits_per_image, target, reduction="sum")
    return caption_loss + image_loss


def summed_over_groups(
    logits_per_text: torch.Tensor, logits_per_image: torch.Tensor, all_pairs: Pairs, first: int
) -> torch.Tensor:
    """
    [`summed_cross_entropy`] where each group counts once, however many texts it has. Without groups, each text is its
    own group.

    Args:
        logits_per_text (`torch.Tensor` of shape `(texts of some images, all images)`): Logits.
        logits_per_image (`torch.Tensor` of shape `(some images, all texts)`): Logits.
        all_pairs, first: See [`summed_cross_entropy`].

    Returns:
        `torch.Tensor`: Scalar, nats.
    """
    groups, per_image = all_pairs.groups, all_pairs.texts_per_image
    if groups is None:
        groups = torch.arange(len(all_pairs.texts), device=all_pairs.texts.device)
    of_images = groups.view(-1, per_image)
    weights = 1 / group_sizes(groups)
    rows = slice(first * per_image, first * per_image + len(logits_per_text))
    text_target = soft_target(groups[rows, None], of_images)
    text_losses = nn.functional.cross_entropy(logits_per_text, text_target, reduction="none")
    # times the images, because the sum will be divided by them
    caption_loss = (weights[rows] * text_losses).sum() * (len(all_pairs.images) / weights.sum())
    # the mean over the copies of a text, then over the distinct texts of an image
    image_target = soft_target(of_images[first : first + len(logits_per_image)], groups[:, None]) * weights
    image_target = image_target / image_target.sum(1, keepdim=True)
    image_losses = (logits_per_image + weights.log()).logsumexp(1) - (image_target * logits_per_image).sum(1)
    return caption_loss + image_losses.sum()


def pair_target(all_pairs: Pairs, rows: slice) -> torch.Tensor:
    """
    The target of some pairs, with one text per image, over all of them, in both directions: the numbers of the pairs
    (int64), or [`soft_target`] with groups.
    """
    groups = all_pairs.groups
    if groups is None:
        return torch.arange(len(all_pairs.texts), device=all_pairs.texts.device)[rows]
    return soft_target(groups[rows, None], groups[:, None])


def soft_target(groups: torch.Tensor, all_groups: torch.Tensor) -> torch.Tensor:
    """
    Float32 (rows, columns): each row is spread evenly over the columns that share a group with it.

    Args:
        groups (`torch.Tensor` of shape `(rows, groups of a row)`), all_groups (`torch.Tensor` of shape
            `(columns, groups of a column)`): int64.
    """
    same = (groups[:, None, :, None] == all_groups[:, None, :]).any(-1).any(-1).float()
    return same / same.sum(1, keepdim=True)
