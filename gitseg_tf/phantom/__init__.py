"""A synthetic cohort in the competition's layout: geometry, anatomy, image, preview and cohort."""

from gitseg_tf.phantom.cohort import make_phantom
from gitseg_tf.phantom.preview import save_preview
from gitseg_tf.phantom.scan import PhantomScan, render_scan

__all__ = ["PhantomScan", "make_phantom", "render_scan", "save_preview"]
