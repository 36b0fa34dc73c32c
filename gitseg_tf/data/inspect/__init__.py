"""The dataset check: what is in a cohort or dataset, and what is odd about it."""

from gitseg_tf.data.inspect.inspection import Inspection, inspect_data, summary_lines
from gitseg_tf.data.inspect.page import write_page

__all__ = ["Inspection", "inspect_data", "summary_lines", "write_page"]
