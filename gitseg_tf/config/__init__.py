"""Experiment configs: one pydantic model per section, read from and written to YAML."""

from gitseg_tf.config.experiment import Config, load_config, parse_assignment, read_yaml, save_config, with_overrides

__all__ = ["Config", "load_config", "parse_assignment", "read_yaml", "save_config", "with_overrides"]
