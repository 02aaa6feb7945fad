"""What a model is worth: zero-shot evaluation, its metrics, figures and reports."""
