"""Networks and build_model."""
