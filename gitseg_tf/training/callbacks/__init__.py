"""Keras callbacks for training."""
