"""A local web page to look through scans, contours and predictions."""
