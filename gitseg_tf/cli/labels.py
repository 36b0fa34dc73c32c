"""The command that prints a cohort's labels as YAML, which can be edited and passed to --labels."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gitseg_tf.cli.parsers import command, reading, reading_arguments
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.core.text import plural

if TYPE_CHECKING:
    from gitseg_tf.data.readers.base import FoundLabel
    from gitseg_tf.labels import LabelSet


def add_parsers(commands) -> None:
    """Add the parser of this file's command."""
    examples = ["gitseg labels cohort > labels.yaml", "gitseg labels cohort --labels labels.yaml"]
    purpose = "print a cohort's labels as YAML: every name found, its count, and the label it is read as"
    labels = command(commands, "labels", _labels, purpose, examples=examples)
    labels.add_argument("data", help="a cohort, or TFRecords made by gitseg convert")
    reading_arguments(labels)
    labels.set_defaults(results_only=True)


def _labels(options: argparse.Namespace) -> None:
    from gitseg_tf.data.tfrecords.dataset import is_dataset, load_dataset

    if is_dataset(options.data):
        import_tensorflow()
        print("\n".join(yaml_lines(load_dataset(options.data).labels, (), options.data)))
        return
    how = reading(options)
    from gitseg_tf.data.readers.registry import read_cohort

    cohort = read_cohort(options.data, list_orphans=True, list_broken=True, **how)
    print("\n".join(yaml_lines(cohort.labels, cohort.found, options.data)))


def yaml_lines(labels: "LabelSet", found: Sequence["FoundLabel"], data: str) -> Iterator[str]:
    """Yield the lines of a YAML file for `read_labels`, with the names found in the data as comments.

    Args:
        labels: the labels.
        found: the names in the data, and the label that each matches.
        data: name of the cohort.
    """
    import yaml

    yield f"# Labels of {data}. Edit this file and use it with --labels FILE.yaml."
    yield "labels:"
    for label, tree in zip(labels, labels.to_tree(), strict=True):
        names = [_found_in(row) for row in found if row.label == label.name]
        if names:
            yield f"# {', '.join(names)}"
        yield yaml.safe_dump([tree], sort_keys=False, allow_unicode=True).rstrip("\n")
    if unused := [row for row in found if row.label not in labels.names]:
        yield "# Not read; to read one of these names, add it as a label or as an alias:"
        yield from (f"# {_found_in(row)}" for row in unused)


def _found_in(row: "FoundLabel") -> str:
    return f"{row.name!r} in {plural(row.scans, 'scan')}"
