"""Confidence intervals and paired comparisons."""
