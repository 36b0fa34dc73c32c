"""Apply trained models to scans, and write the masks to files."""
