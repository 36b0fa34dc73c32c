"""DICOM series and RT structure sets."""
