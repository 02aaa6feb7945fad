"""Models and what they make of images: loading, embedding, the cache, the pass over the images."""
