"""Segmenting a folder of scans."""

from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.data.scans import read_cohort, read_image
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.outputs import submission_rows, write_overlays, write_submission
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.progress import progress


def predict_cohort(
    model: str | AnyPath, source: str | AnyPath, out: str | AnyPath, output: str = "submission"
) -> AnyPath:
    """Segment every scan of a folder.

    Args:
        model: a run folder or an exported SavedModel.
        source: a folder of any layout that `read_cohort` knows; contours are not read. Of train/ and test/ it is test/.
        out: gets submission.csv, or a folder a scan with a PNG a slice.
        output: "submission" or "png".

    Returns:
        What was written: the table, or the folder.

    Raises:
        InputError: no model, no scans, or a slice that cannot be read.
    """
    cohort, out = read_cohort(source, table=False), as_path(out)
    predict = load_predictor(model)
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for scan in progress(cohort.scans, "predict", unit="scan"):
        image = read_image(scan)
        masks = predict(image, scan.numbers, intensity_percentiles(image), scan.spacing)
        if output == "png":
            write_overlays(out / scan.id, scan, image, masks)
        else:
            rows += submission_rows(scan, masks)
    if output == "png":
        return out
    write_submission(out / "submission.csv", rows)
    return out / "submission.csv"
