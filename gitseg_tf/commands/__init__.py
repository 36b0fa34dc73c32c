"""The commands, a file a group: each adds its parsers, and each command is one call."""
