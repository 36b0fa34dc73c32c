"""A local web page for browsing scans, contours and predictions."""
