"""The command that makes a structure set from masks."""

import argparse

from gitseg_tf.cli.parsers import command


def add_parsers(commands) -> None:
    """Add the parser of this file's command."""
    purpose = "make an RT structure set from masks that were corrected in another tool"
    examples = ["gitseg rtstruct predictions/case1_20260102 dicom/case1 --out corrected.dcm"]
    examples += ["gitseg rtstruct corrected.nii.gz dicom/case1 --labels uwmgi"]
    rtstruct = command(commands, "rtstruct", _rtstruct, purpose, examples=examples)
    rtstruct.add_argument("masks", help="NIfTI: a label map, or a folder with one file per label")
    rtstruct.add_argument("series", help="folder of the DICOM series on whose grid the masks are")
    rtstruct.add_argument("--out", metavar="FILE", help="file to write (default: SCAN.dcm in the current folder)")
    rtstruct.add_argument(
        "--labels",
        metavar="uwmgi|FILE.yaml",
        help="names, colors, ROI names and codes: a preset, or a file like that of gitseg labels "
        "(default: the names of the masks)",
    )
    rtstruct.add_argument("--force", action="store_true", help="replace an existing file")


def _rtstruct(options: argparse.Namespace) -> None:
    from gitseg_tf.inference.writers.from_masks import masks_to_structure_set
    from gitseg_tf.labels import read_labels

    labels = None if options.labels is None else read_labels(options.labels)
    path = masks_to_structure_set(options.masks, options.series, options.out, labels=labels, force=options.force)
    print(f"written    {path}")
