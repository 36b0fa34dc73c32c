"""The ranking of training scans by disagreement as a self-contained HTML file."""

from collections.abc import Sequence

from gitseg_tf.core.paths import AnyPath, write_atomically
from gitseg_tf.evaluation.disagreement import ScanDisagreement
from gitseg_tf.html.pages import page_environment
from gitseg_tf.labels import LabelSet


def write_disagreement_page(path: AnyPath, ranking: Sequence[ScanDisagreement], labels: LabelSet, title: str) -> None:
    """Write the ranking, with pictures of the slices that disagree most.

    Args:
        path: the file; an existing one is replaced atomically.
        ranking: from `rank_training_scans`.
        labels: labels of the scans.
        title: of the page.

    Raises:
        OSError: the file cannot be written.
    """
    template = page_environment("gitseg_tf.evaluation.report", labels).get_template("disagreement.html.j2")
    write_atomically(path, template.render(title=title, scans=list(ranking)).encode())
