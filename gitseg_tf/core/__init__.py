"""Paths, locks, progress, versions and the lazy import of TensorFlow."""
