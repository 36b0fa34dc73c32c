"""Read trained runs; this package does not depend on training."""
