"""From files to batches: readers, TFRecords, and the tf.data pipeline."""
