"""Independent programs that judge our files: plastimatch, dicom3tools and dcm2niix. Tests skip without them."""

import copy
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file


def needs(program):
    """Skip a test if a program is not installed."""
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"{program} is missing; apt-get install plastimatch dicom3tools dcm2niix"
    )


def output_of(*command):
    """Run a program, and return everything it prints; a failure is one of the test unless it prints errors itself."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, errors="replace")
    return done.stdout + done.stderr


def errors_of(*command):
    """Run a program of dicom3tools, and return the lines that are errors."""
    lines = output_of(*command).splitlines()
    assert lines or command[0] == "dcentvfy", f"{command[0]} printed nothing"
    return [line for line in lines if line.startswith(("Error", "Abort"))]


def plastimatch_mask(structures, image, folder, name):
    """Rasterize an ROI with plastimatch on the grid of an image: bool [X, Y, Z] as stored, and its affine (RAS+)."""
    import nibabel

    grid = ["--fixed", image, "--output-prefix", folder, "--prefix-format", "nii"]
    printed = output_of("plastimatch", "convert", "--input", structures, *grid)
    path = folder / f"{name}.nii"
    assert path.is_file(), printed
    nifti = nibabel.load(path)
    return np.asanyarray(nifti.dataobj) > 0, nifti.affine


def write_ct(folder, slices=5, step_mm=5.0, change=lambda dataset, k: None):
    """Write a series with the header of a real CT slice (pydicom's CT_small.dcm), 128 x 128 pixels.

    Returns the headers, feet to head.
    """
    folder.mkdir(parents=True)
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    headers = []
    for k in range(slices):
        dataset = copy.deepcopy(template)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{template.SOPInstanceUID}.{k}"
        x, y, z = map(float, template.ImagePositionPatient)
        dataset.ImagePositionPatient, dataset.InstanceNumber = [x, y, round(z + k * step_mm, 3)], k + 1
        dataset.SliceLocation = dataset.ImagePositionPatient[2]
        change(dataset, k)
        dataset.save_as(folder / f"CT{k}.dcm")
        headers.append(dataset)
    return headers
