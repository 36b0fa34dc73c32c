"""Export formats other than SavedModel."""
