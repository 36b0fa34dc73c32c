"""The networks, and `build_model`."""
