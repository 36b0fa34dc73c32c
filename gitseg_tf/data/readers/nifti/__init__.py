"""NIfTI folders of images and masks."""
