"""Batches and models beyond the memory of one GPU: gradient caching and FSDP."""
