"""Hyperparameter search: learning rate range test, overfit check, grid search."""
