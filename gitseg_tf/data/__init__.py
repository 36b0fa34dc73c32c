"""From files to batches: reading scans, TFRecords, the tf.data pipeline."""
