"""Tuning of post-processing."""
