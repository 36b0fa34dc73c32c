"""Scores, statistics, tuning and the report."""
