"""PyTorch's files, read without it: the values, and what is refused."""

import os

import numpy as np
import pytest
from helpers.torch_files import Storage, Tensor, tensors_of, write_torch_file

from gitseg_tf.errors import DataError
from gitseg_tf.models.torch_weights import read_torch_weights

RNG = np.random.default_rng(0)
ARRAYS = {"conv.weight": RNG.random((3, 2, 4), np.float32), "bn.steps": np.array(7), "bn.bias": np.ones(3, np.float32)}
FORMATS = pytest.mark.parametrize("archive", [False, True], ids=["older", "archive"])


@FORMATS
def test_arrays_are_read_with_their_shapes_and_types(tmp_path, monkeypatch, archive):
    read = read_torch_weights(write_torch_file(tmp_path / "w.pth", tensors_of(ARRAYS), monkeypatch, archive=archive))
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and np.array_equal(read[name], array) and read[name].flags.writeable


@FORMATS
def test_tensors_that_share_a_storage_are_cut_out_of_it(tmp_path, monkeypatch, archive):
    values = Storage("a", np.arange(12, dtype=np.float32))
    tree = {"transposed": Tensor(values, 0, (4, 3), (1, 4)), "last": Tensor(values, 8, (2, 2), (2, 1))}
    read = read_torch_weights(write_torch_file(tmp_path / "w.pth", tree, monkeypatch, archive=archive))
    assert read["transposed"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert read["last"].tolist() == [[8, 9], [10, 11]]


class Attack:
    """Would run a command when unpickled by pickle.load."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


@FORMATS
@pytest.mark.parametrize("tree", [{"weight": Attack()}, Attack(), {**tensors_of(ARRAYS), "epoch": 3}, {"w": [1.0]}])
def test_anything_but_a_dict_of_tensors_is_refused_and_not_run(tmp_path, monkeypatch, refusal, tree, archive):
    monkeypatch.chdir(tmp_path)
    path = write_torch_file(tmp_path / "w.pth", tree, monkeypatch, archive=archive)
    message = refusal(read_torch_weights, path)
    assert message.startswith(f"{path}: contains ") and "not only tensors" in message
    assert not (tmp_path / "attacked").exists()


@FORMATS
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (4,)), (0, (2**40,), (0,)), (-1, (2,), (1,)), (0, (-2,), (1,))],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, monkeypatch, refusal, archive, offset, shape, strides):
    tree = {"w": Tensor(Storage("a", np.arange(4, dtype=np.float32)), offset, shape, strides)}
    path = write_torch_file(tmp_path / "w.pth", tree, monkeypatch, archive=archive)
    assert "is damaged, or is not a PyTorch file of weights" in refusal(read_torch_weights, path)


@FORMATS
def test_a_cut_file_is_refused_wherever_it_ends(tmp_path, monkeypatch, refusal, archive):
    whole = write_torch_file(tmp_path / "w.pth", tensors_of(ARRAYS), monkeypatch, archive=archive).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(read_torch_weights, path)


@FORMATS
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, monkeypatch, archive):
    whole = write_torch_file(tmp_path / "w.pth", tensors_of(ARRAYS), monkeypatch, archive=archive).read_bytes()
    rng, path, refused = np.random.default_rng(5), tmp_path / "damaged.pth", 0
    for _ in range(400):
        damaged = bytearray(whole)
        for position in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_torch_weights(path)
        except DataError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100


def test_a_missing_file_is_named(tmp_path, refusal):
    assert "cannot be read (No such file or directory)" in refusal(read_torch_weights, tmp_path / "none.pth")
