"""Export runs as SavedModels and in other formats."""
