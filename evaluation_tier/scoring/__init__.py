"""From embeddings to scores and metrics of findings."""
