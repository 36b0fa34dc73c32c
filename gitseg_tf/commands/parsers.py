"""What the parsers of commands have in common."""

import argparse


def command(commands, name: str, run, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose)
    parser.set_defaults(run=run)
    return parser
