"""Memory that runs out gives one line that says what to reduce."""

import subprocess
import sys

import cv2
import nibabel
import numpy as np
import pytest
import tensorflow as tf

from gitseg_tf.cli import main
from gitseg_tf.core.memory import is_out_of_memory, out_of_memory_line

# More than any computer has.
HUGE = 1 << 55
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2500 << 20, 2500 << 20))
from gitseg_tf.cli import main
sys.exit(main(sys.argv[1:]))
"""


def of_numpy():
    np.zeros(HUGE, np.uint8)


def of_python():
    bytearray(HUGE)


def of_opencv():
    # OpenCV's own code for memory that runs out; 30000 x 30000 x 4 doubles do not fit into its largest matrix.
    raise cv2.error("OpenCV(4.11) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 28800000000 bytes")


def of_tensorflow():
    tf.zeros([HUGE // 4])


def of_a_python_function_in_a_graph():
    dataset = tf.data.Dataset.range(1).map(lambda n: tf.numpy_function(of_numpy, [], tf.int64))
    list(dataset)


def of_a_function_of_opencv_in_a_graph():
    list(tf.data.Dataset.range(1).map(lambda n: tf.numpy_function(of_opencv, [], tf.int64)))


def of_the_native_code_of_tensorflow():
    raise tf.errors.InternalError(None, None, "std::bad_alloc")


def of_a_device():
    raise tf.errors.ResourceExhaustedError(
        None,
        None,
        "OOM when allocating tensor with shape[64,512,512,64] and type float on /device:GPU:0\n\t [[node x]]",
    )


def caught(source):
    with pytest.raises(Exception) as caught:
        source()
    return caught.value


@pytest.mark.parametrize(
    "source",
    [
        of_numpy,
        of_python,
        of_opencv,
        of_a_python_function_in_a_graph,
        of_a_function_of_opencv_in_a_graph,
        of_the_native_code_of_tensorflow,
        of_a_device,
        pytest.param(of_tensorflow, marks=pytest.mark.slow),  # which waits for 10 s
    ],
)
def test_the_error_of_each_library_is_recognized(source):
    shortage = caught(source)
    assert is_out_of_memory(shortage)
    for work in ("training", "inference"):
        line = out_of_memory_line(shortage, work)
        assert len(line.splitlines()) == 1 and len(line) < 800
        assert all(name in line for name in ("batch size" if work == "training" else "batch", "input size", "gradient"))


@pytest.mark.parametrize(
    "error",
    [ValueError("Unable to allocate"), tf.errors.InvalidArgumentError(None, None, "bad shape"), OSError(2, "No")],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def raising(error):
    def call(*arguments, **options):
        raise error

    return call


@pytest.mark.parametrize(
    ("command", "function", "expected"),
    [
        (
            ["train"],
            "gitseg_tf.training.run_folder.choose_run",
            ("data.batch_size", "data.input_size", "training.gradient_accumulation_steps"),
        ),
        (
            ["evaluate", "run"],
            "gitseg_tf.cli.dataset.run_and_data",
            ("evaluation.batch_size", "data.input_size", "gradient accumulation"),
        ),
        (
            ["predict", "run", "in", "out"],
            "gitseg_tf.inference.predict.predict_cohort",
            ("tiles", "evaluation.batch_size", "data.input_size"),
        ),
    ],
)
@pytest.mark.parametrize("source", [of_numpy, of_opencv, of_a_device])
def test_a_command_says_in_one_line_what_to_reduce(command, function, expected, source, monkeypatch, capfd):
    monkeypatch.setattr(function, raising(caught(source)))
    assert main(command) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gitseg: ")]
    assert "out of memory" in line and all(name in line for name in expected)


def test_an_error_that_is_not_about_memory_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("gitseg_tf.training.run_folder.choose_run", raising(AssertionError("a programming error")))
    with pytest.raises(AssertionError, match="a programming error"):
        main(["train"])


@pytest.mark.process
def test_a_conversion_without_enough_memory_ends_in_one_line(tmp_path):
    """A scan of 900 MB of zeros, of which the file contains only the header, with 2.5 GB of address space."""
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / "large.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)), path)
    with path.open("r+b") as file:
        file.seek(40)
        file.write(np.array([3, 1500, 1500, 400, 1, 1, 1, 1], "<i2").tobytes())
        file.truncate(352 + 1500 * 1500 * 400)
    command = [sys.executable, "-c", LIMITED, "convert", str(path.parent), str(tmp_path / "records")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr[-3000:]
    assert "gitseg: out of memory" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "records" / "dataset.json").exists()
