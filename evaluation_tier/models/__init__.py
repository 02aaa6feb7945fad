"""Loads models and embeds images: loading, embedding, the cache, the pass over the images."""
