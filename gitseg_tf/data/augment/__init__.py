"""Augmentation of training windows: random parameters, applied by OpenCV or by TensorFlow."""
