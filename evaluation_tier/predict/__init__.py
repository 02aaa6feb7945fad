"""Predictions on single images: what `tier-predict` does between its arguments and its files."""
