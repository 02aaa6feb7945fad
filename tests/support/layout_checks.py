"""Loading a checkpoint in a test, and comparing its embeddings with those of the original model."""

import torch

from modeling_tier.checkpoints import load_source, open_source

TOLERANCE = 1e-5


def difference(original, model, pixels, ids, mask=None):
    """The largest difference in an embedding, after a check that embeddings are of size 1 and differ among inputs."""
    with torch.no_grad():
        ours = (
            model.get_image_features(pixels).pooler_output,
            model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output,
        )
    for theirs in original:
        assert theirs.abs().mean() > 0.05 and theirs.std(dim=0).mean() > 0.01
    return max((a - b).abs().max().item() for a, b in zip(original, ours, strict=True))


def load(path, **options):
    source = open_source(path, options.pop("kind", None))
    return source.kind, load_source(source, **options)


def saved(path, state):
    torch.save(state, path)
    return path
