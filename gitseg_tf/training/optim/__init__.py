"""Optimizers, schedules, layer-wise learning rates and weight averages."""
