"""Planning: choose the config of a training from the data, the machine, and the time and memory that are available."""
