"""Metrics between masks."""
