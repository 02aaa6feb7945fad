"""The start of a training: presets, checkpoints, towers, frozen layers, and the text warm-up."""
