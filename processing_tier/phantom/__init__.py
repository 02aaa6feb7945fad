"""The phantom: synthetic radiographs with reports, labels and masks. `dataset` makes the records."""
