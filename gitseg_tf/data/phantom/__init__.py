"""A synthetic cohort in the competition's layout: geometry, anatomy, image, preview, and the cohort made of them."""

from gitseg_tf.data.phantom.cohort import PhantomScan, make_phantom, render_scan
from gitseg_tf.data.phantom.preview import save_preview

__all__ = ["PhantomScan", "make_phantom", "render_scan", "save_preview"]
