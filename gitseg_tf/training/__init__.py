"""Losses, metrics, optimizers, strategies and the trainer."""
