"""tf.distribute strategies, clusters and worker consistency."""
