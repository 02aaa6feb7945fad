"""Metrics of scores and labels, and how certain each is: resampling, intervals, comparisons, subgroups."""
