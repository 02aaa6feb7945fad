"""From records to batches: splits, pairs, augmentation, order, streaming and the image cache."""
