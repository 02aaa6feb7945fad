"""Evaluates models: zero-shot scores, metrics, figures and reports."""
