"""Datasets on disk: TFRecord shards and dataset.json."""
