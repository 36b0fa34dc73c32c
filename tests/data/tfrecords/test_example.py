"""One scan as a tf.train.Example, checked with numpy and with TensorFlow's own parser."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gitseg_tf.config import load_config
from gitseg_tf.data.sources import DATASETS
from gitseg_tf.data.tfrecords.example import decode_scan, pack_masks, parse_scan, serialize_scan, unpack_masks
from gitseg_tf.data.tfrecords.index import ScanEntry
from gitseg_tf.data.tfrecords.teacher import add_teacher
from gitseg_tf.data.volume import PERCENTILES, Annotation, PseudoLabels, Volume, intensity_percentiles
from gitseg_tf.labels import UWMGI, LabelSet

FORMAT_PAGE = Path(__file__).parents[3] / "tfrecords" / "README.md"
SHAPE, NUMBERS, SPACING = (3, 5, 4), (3, 4, 9), (3.0, 1.63, 1.5)
VALUES = {
    "uint16": lambda rng, shape: rng.integers(0, 65536, shape).astype(np.uint16),
    "int16": lambda rng, shape: rng.integers(-32768, 32768, shape).astype(np.int16),
    "float32": lambda rng, shape: rng.normal(0, 1e4, shape).astype(np.float32),
}


def volume_of(dtype="uint16", channels=1, seed=0):
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    return Volume(VALUES[dtype](np.random.default_rng(seed), shape), SPACING, NUMBERS)


def annotation_of(labels=3, ignore=False, seed=1):
    rng = np.random.default_rng(seed)
    masks, annotated = rng.random((labels, *SHAPE)) < 0.4, np.ones(labels, bool)
    if labels > 1:
        annotated[1], masks[1] = False, False
    return Annotation(masks, annotated, rng.random(SHAPE) < 0.3 if ignore else None)


def names(count):
    return LabelSet.of(*(f"label{k}" for k in range(count)))


def pseudo_of(labels=3, seed=2):
    """Predictions of the only label that `annotation_of` leaves out."""
    rng = np.random.default_rng(seed)
    predicted = np.arange(labels) == 1
    masks, uncertain = ((rng.random((labels, *SHAPE)) < 0.4) & predicted[:, None, None, None] for _ in range(2))
    return PseudoLabels(predicted, masks, uncertain)


def record_of(volume, annotation, labels=3, pseudo=None):
    return serialize_scan(
        "case7_day2", "case7", volume=volume, annotation=annotation, labels=names(labels), pseudo=pseudo
    )


@pytest.fixture(scope="module")
def volume():
    return volume_of()


@pytest.fixture(scope="module")
def annotation():
    return Annotation.complete(np.random.default_rng(1).random((3, *SHAPE)) < 0.4)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([np.uint16, np.int16, np.uint8, np.int32]).flatmap(
        lambda dtype: (
            arrays(dtype, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(0, 255))
            if dtype == np.uint8
            else arrays(
                dtype,
                array_shapes(min_dims=3, max_dims=3, max_side=9),
                elements=st.integers(0, 65535) if dtype == np.uint16 else st.integers(-32768, 32767),
            )
        )
    )
)
def test_percentiles_of_integers_match_numpy(image):
    assert np.array_equal(intensity_percentiles(image), np.percentile(image, PERCENTILES, method="inverted_cdf"))


@settings(deadline=None, max_examples=60)
@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.floats(-1e6, 1e6, width=32)))
def test_percentiles_of_floats_match_numpy(image):
    assert np.array_equal(intensity_percentiles(image), np.percentile(image, PERCENTILES, method="inverted_cdf"))


@pytest.mark.parametrize("voxels", [1, 2, 99, 100, 101, 199, 200, 201, 999, 1000, 12345])
def test_percentiles_are_exact_where_ranks_are_whole(voxels):
    image = np.random.default_rng(0).permutation(voxels).astype(np.uint16)
    assert np.array_equal(intensity_percentiles(image), np.percentile(image, PERCENTILES, method="inverted_cdf"))


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("dtype", VALUES)
def test_percentiles_and_moments_of_each_channel_match_numpy(dtype, channels):
    volume = volume_of(dtype, channels)
    for c, (percentiles, (mean, std)) in enumerate(zip(volume.percentiles, volume.moments, strict=True)):
        values = volume.voxels.reshape(*SHAPE, channels)[..., c].astype(np.float64)
        assert np.array_equal(percentiles, np.percentile(values, PERCENTILES, method="inverted_cdf").astype(np.float32))
        assert mean == pytest.approx(values.mean(), rel=1e-6, abs=1e-3) and std == pytest.approx(values.std(), rel=1e-6)
    assert volume.percentiles.shape == (channels, 11) and volume.moments.shape == (channels, 2)


@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))))
def test_overlapping_masks_round_trip_through_packing(masks):
    assert np.array_equal(unpack_masks(pack_masks(masks), len(masks)), masks)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 12, 117, 255])
def test_packed_bits_match_numpy(count):
    masks = np.random.default_rng(count).random((count, 2, 5, 4)) < 0.4
    masks[count // 2] = False
    bits = pack_masks(masks)
    assert bits.shape == (2, 5, 4, -(-count // 8)) and bits.dtype == np.uint8
    assert np.array_equal(bits, np.moveaxis(np.packbits(masks, 0, "little"), 0, -1))
    assert np.array_equal(unpack_masks(bits, count), masks)


def test_bit_k_is_label_k():
    masks = np.array([[[[0, 1, 0, 1]]], [[[0, 0, 1, 1]]], [[[0, 0, 0, 1]]]], bool)
    assert pack_masks(masks)[..., 0].tolist() == [[[0, 1, 2, 7]]]


@pytest.mark.parametrize(("labels", "ignore"), [(1, False), (3, True), (8, False), (12, True), (255, False)])
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 1), ("int16", 2), ("float32", 3)])
def test_a_record_round_trips_through_the_tensorflow_parser(dtype, channels, labels, ignore):
    volume, annotation = volume_of(dtype, channels), annotation_of(labels, ignore)
    record = record_of(volume, annotation, labels)
    fields = {name: value.numpy() for name, value in parse_scan(record).items()}
    assert (fields["id"], fields["case"]) == (b"case7_day2", b"case7")
    assert fields["image"].dtype == np.float32 and np.array_equal(fields["image"], volume.with_channels)
    assert np.array_equal(unpack_masks(fields["bits"], labels), annotation.masks)
    assert fields["annotated"].dtype == bool and np.array_equal(fields["annotated"], annotation.annotated)
    assert np.array_equal(fields["ignore"], annotation.ignore if ignore else np.zeros(SHAPE, bool))
    assert fields["numbers"].tolist() == [3, 4, 9]
    assert np.array_equal(fields["spacing"], np.float32(SPACING))
    assert np.array_equal(fields["percentiles"], volume.percentiles)
    assert np.array_equal(fields["moments"], volume.moments)


@pytest.mark.parametrize(("labels", "ignore"), [(1, False), (3, True), (8, False), (12, True), (255, False), (3, None)])
@pytest.mark.parametrize(("dtype", "channels"), [("uint16", 1), ("int16", 2), ("float32", 3)])
def test_decoding_without_tensorflow_matches_the_tensorflow_parser(dtype, channels, labels, ignore):
    volume, annotation = volume_of(dtype, channels), None if ignore is None else annotation_of(labels, ignore)
    record = record_of(volume, annotation, labels)
    scan, expected = decode_scan(record), {name: value.numpy() for name, value in parse_scan(record).items()}
    assert (scan.id, scan.case) == (expected["id"].decode(), expected["case"].decode())
    assert scan.volume.voxels.dtype == dtype and np.array_equal(scan.volume.voxels, volume.voxels)
    assert np.array_equal(scan.volume.with_channels, expected["image"])
    assert scan.volume.numbers == tuple(expected["numbers"]) and scan.volume.spacing == SPACING
    assert np.array_equal(scan.volume.percentiles, expected["percentiles"])
    assert np.array_equal(scan.volume.moments, expected["moments"])
    if annotation is None:
        assert scan.annotation is None and not expected["annotated"].any() and not expected["bits"].any()
    else:
        assert np.array_equal(scan.annotation.masks, unpack_masks(expected["bits"], labels))
        assert np.array_equal(scan.annotation.annotated, expected["annotated"])
        assert (scan.annotation.ignore is None) == (not ignore)
        assert not ignore or np.array_equal(scan.annotation.ignore, expected["ignore"])


def test_records_are_parsed_in_a_graph(volume, annotation):
    records = [record_of(volume, annotation), record_of(volume_of("float32"), None)]
    scans = list(tf.data.Dataset.from_tensor_slices(records).map(parse_scan).as_numpy_iterator())
    assert np.array_equal(scans[0]["image"], volume.with_channels) and not scans[1]["annotated"].any()


def test_non_contiguous_arrays_are_written_correctly(volume, annotation):
    turned = Volume(np.asfortranarray(volume.voxels), SPACING, NUMBERS)
    masks = Annotation.complete(np.asfortranarray(annotation.masks))
    assert record_of(turned, masks) == record_of(volume, annotation)


def test_a_scan_without_annotation_has_zero_bits(volume):
    fields = parse_scan(record_of(volume, None))
    assert fields["bits"].shape == (*SHAPE, 1) and not fields["bits"].numpy().any()


def test_a_scan_of_a_dataset_without_labels_is_read(volume):
    record = serialize_scan("case7_day2", "case7", volume=volume, annotation=None, labels=LabelSet(()))
    assert parse_scan(record)["bits"].shape == (*SHAPE, 0) and decode_scan(record).annotation is None


def test_bits_beyond_the_labels_are_refused(volume, annotation):
    example = tf.train.Example.FromString(record_of(volume, annotation))
    bits = np.full(SHAPE, 8, np.uint8)
    example.features.feature["mask/bits"].bytes_list.value[0] = zlib.compress(bits.tobytes())
    with pytest.raises(ValueError, match="bits beyond the 3 labels"):
        decode_scan(example.SerializeToString())


def test_a_record_has_the_documented_features(volume):
    table = dict(re.findall(r"^\| `(\w+/\w+)` \| (\w+) \|", FORMAT_PAGE.read_text(), re.MULTILINE))
    record = record_of(volume, annotation_of(3, True), pseudo=pseudo_of())
    entry = ScanEntry("a", "a", volume.shape, volume.spacing, {}, 0, ())
    record, _ = add_teacher(record, entry, np.zeros((3, *volume.shape), np.float32), ("a", "b", "c"))
    features = tf.train.Example.FromString(record).features.feature
    assert {name: feature.WhichOneof("kind").removesuffix("_list") for name, feature in features.items()} == table


@pytest.mark.parametrize("labels", [3, 12])
@pytest.mark.parametrize("annotated", [True, False])
def test_pseudo_labels_are_decoded_apart_from_the_annotation(volume, labels, annotated):
    annotation, pseudo = annotation_of(labels) if annotated else None, pseudo_of(labels)
    record = record_of(volume, annotation, labels, pseudo)
    scan, parsed = decode_scan(record), {name: x.numpy() for name, x in parse_scan(record, pseudo=True).items()}
    for name in ("labels", "masks", "uncertain"):
        assert np.array_equal(getattr(scan.pseudo, name), getattr(pseudo, name))
    assert np.array_equal(unpack_masks(parsed["uncertain"], labels), pseudo.uncertain)
    assert np.array_equal(parsed["pseudo"], pseudo.labels)
    bits = pseudo.masks
    if annotated:
        assert np.array_equal(scan.annotation.masks, annotation.masks)
        assert np.array_equal(parsed["annotated"], annotation.annotated)
        bits = bits | annotation.masks
    else:
        assert scan.annotation is None and not parsed["annotated"].any()
    assert np.array_equal(unpack_masks(parsed["bits"], labels), bits)
    without = parse_scan(record_of(volume, annotation, labels), pseudo=True)
    assert not without["pseudo"].numpy().any() and not without["uncertain"].numpy().any()


def test_a_label_that_is_both_annotated_and_predicted_is_refused(volume):
    example = tf.train.Example.FromString(record_of(volume, annotation_of(), pseudo=pseudo_of()))
    example.features.feature["mask/pseudo"].bytes_list.value[0] = bytes([1, 1, 0])
    with pytest.raises(ValueError, match="mask/pseudo does not fit mask/annotated"):
        decode_scan(example.SerializeToString())


@pytest.mark.parametrize("left_out", ["mask/bits", "mask/ignore", "mask/pseudo", "mask/uncertain"])
def test_masks_are_left_out_as_documented(volume, annotation, left_out):
    record = record_of(volume, None if left_out == "mask/bits" else annotation)
    assert left_out not in tf.train.Example.FromString(record).features.feature


@pytest.mark.parametrize(("dtype", "stored"), [("uint16", "<u2"), ("int16", "<i2"), ("float32", "<f4")])
def test_voxels_and_masks_are_stored_as_documented(dtype, stored):
    volume, annotation = volume_of(dtype, 2), annotation_of(12, True)
    features = tf.train.Example.FromString(record_of(volume, annotation, 12)).features.feature
    content = {name: feature.bytes_list.value[0] for name, feature in features.items() if feature.bytes_list.value}
    voxels = np.frombuffer(content["image/voxels"], stored).reshape(2, *SHAPE)
    bits = np.frombuffer(zlib.decompress(content["mask/bits"]), np.uint8).reshape(2, *SHAPE)
    ignore = np.frombuffer(zlib.decompress(content["mask/ignore"]), np.uint8).reshape(SHAPE)
    assert content["image/dtype"].decode() == dtype and features["image/channels"].int64_list.value == [2]
    assert np.array_equal(voxels, volume.voxels.transpose(3, 0, 1, 2)) and np.array_equal(ignore, annotation.ignore)
    for k, mask in enumerate(annotation.masks):
        assert np.array_equal(bits[k // 8] >> (k % 8) & 1, mask)
    assert np.frombuffer(content["mask/annotated"], np.uint8).tolist() == annotation.annotated.astype(int).tolist()


def test_the_documented_example_reads_a_dataset(tiny_cohort, tiny_dataset, capsys):
    code = re.search(r"```python\n(.*?)```", FORMAT_PAGE.read_text(), re.DOTALL)[1]
    names = {}
    phantom = str(DATASETS / "phantom" / f"records-{load_config().data.folds}folds")
    assert phantom in code
    exec(code.replace(phantom, str(tiny_dataset.root)), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(tiny_dataset.scans_of([1, 2])) and names["labels"] == list(UWMGI.names)
    for scan_id, image, masks, annotated, spacing in tf.data.TFRecordDataset(names["files"]).map(names["read"]):
        truth = tiny_cohort[scan_id.numpy().decode()]
        assert np.array_equal(image, truth.image[None]) and np.array_equal(masks, truth.masks)
        assert np.allclose(spacing, truth.spacing) and annotated.numpy().all()


def test_a_record_without_scan_features_is_refused():
    with pytest.raises(ValueError, match="scan/shape"):
        decode_scan(tf.train.Example().SerializeToString() or b"\n\x00")
