"""What a training starts from: presets, checkpoints, towers, frozen layers, and the text warm-up."""
