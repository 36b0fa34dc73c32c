"""The dataset check: measure a cohort or dataset, and report anomalies."""

from gitseg_tf.inspection.inspect import Inspection, inspect_data, summary_lines
from gitseg_tf.inspection.page import write_page

__all__ = ["Inspection", "inspect_data", "summary_lines", "write_page"]
