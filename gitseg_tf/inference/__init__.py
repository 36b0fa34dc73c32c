"""From a trained model to masks and files."""
