"""Masks that any tool made of the scans of a cohort: a table, NIfTI files or RT structure sets."""
