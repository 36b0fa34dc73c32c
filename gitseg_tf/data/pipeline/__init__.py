"""The tf.data pipeline, from shards to batches."""
