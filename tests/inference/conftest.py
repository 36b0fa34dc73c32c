"""Drawn scans as NIfTI and as DICOM."""

from clinic import clinic, dicom_writer, nifti, patients, write  # noqa: F401
