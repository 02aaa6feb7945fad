"""Prompt sets for zero-shot scoring (YAML files), and `loader`, which reads them."""
