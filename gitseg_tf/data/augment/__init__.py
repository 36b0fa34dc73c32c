"""Random changes of training windows: drawn once (draws), made by OpenCV (host) or by TensorFlow (accelerator)."""
