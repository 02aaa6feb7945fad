"""Figures: one file per subject, one style (`style.py`)."""
