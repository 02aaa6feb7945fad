"""Analyses other than the scores."""
