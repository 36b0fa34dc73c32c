"""The sections of an experiment, one file each: which keys there are, their types, ranges and defaults."""
