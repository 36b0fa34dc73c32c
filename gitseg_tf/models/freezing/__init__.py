"""Freeze networks for inference."""
