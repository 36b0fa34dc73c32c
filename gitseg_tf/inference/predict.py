"""Segment the scans of a folder, or a single file."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gitseg_tf.core.paths import AnyPath, as_path
from gitseg_tf.core.progress import progress
from gitseg_tf.core.text import plural
from gitseg_tf.data.readers.base import Cohort, Scan
from gitseg_tf.data.readers.registry import read_cohort, read_file
from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import ConfigError, DataError, GitsegError, ScanError
from gitseg_tf.inference.prediction import BasePredictor, Prediction
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.inference.report import Report, reporting, scan_entry
from gitseg_tf.inference.writers.preview import preview_files, write_preview
from gitseg_tf.inference.writers.probabilities import probability_files, write_probabilities
from gitseg_tf.inference.writers.registry import WRITERS, open_writer, predicted_files, predicted_scans
from gitseg_tf.labels import UWMGI, LabelSet

logger = logging.getLogger(__name__)

_DEFAULT_OUTPUTS = ("submission", "nifti")


def predict_cohort(
    models: str | AnyPath | Sequence[str | AnyPath],
    source: str | AnyPath,
    out: str | AnyPath,
    *,
    output: str | None = None,
    load: Callable[[Any], BasePredictor] | None = None,
    save_probabilities: bool = False,
    preview: bool = False,
    report: str | AnyPath | None = None,
) -> AnyPath:
    """Segment every scan of a folder, or a single file; a scan that cannot be read does not stop the others.

    Earlier predictions of a scan that fails are removed, so that they are not mistaken for new ones. Scans unlike the
    training data, and models that are not fully trained, are named in a warning, see `gitseg_tf.inference.trust`.

    Args:
        models: runs, exported SavedModels or cross-validations, see `load_predictor`; several are averaged.
        source: a folder of any layout that `read_cohort` supports, whose annotations are not read (test/ is preferred
            to train/); or a file that `read_file` supports.
        out: the folder for the predictions.
        output: a format of WRITERS; None is "submission" if the competition has all labels of the models, otherwise
            "nifti".
        load: function that creates the predictor of the models; None is `load_predictor`.
        save_probabilities: also write probabilities, see `write_probabilities`.
        preview: also write an image of each scan, see `write_preview`.
        report: a JSON file for volumes, warnings, versions and timings, see `Report`; None writes none. It is also
            written if there is an error.

    Returns:
        The folder.

    Raises:
        DataError: no scans, scans that cannot be written in this format, or, after all others are written, scans that
            failed.
        RunError, ServerError: no model, or models that are incompatible.
        ConfigError: an unknown format, labels that it does not support, or probabilities of a server.
    """
    out, source = as_path(out), as_path(source)
    with reporting(None if report is None else as_path(report), source) as facts:
        extras = _Extras(save_probabilities, preview)
        return _predict_cohort(models, source, out, output=output, load=load, extras=extras, report=facts)


@dataclass(frozen=True)
class _Extras:
    """What to write in addition to the masks."""

    probabilities: bool
    preview: bool

    def outdated(self, out: AnyPath, scan_id: str) -> list[AnyPath]:
        """List the files of an earlier call that this one does not write again."""
        probabilities = [] if self.probabilities else probability_files(out, scan_id)
        return probabilities + ([] if self.preview else preview_files(out, scan_id))


def _predict_cohort(
    models,
    source: AnyPath,
    out: AnyPath,
    *,
    output: str | None,
    load: Callable[[Any], BasePredictor] | None,
    extras: _Extras,
    report: Report,
) -> AnyPath:
    if output is not None:
        WRITERS.check(output)
    try:
        cohort = _read_source(source)
    except GitsegError as error:
        raise DataError(f"{error}{_describe_earlier(output, out, source)}") from error
    for note in cohort.notes:
        logger.info(note)
    for line in cohort.warnings:
        logger.warning(line)
    failed = [name for name, _ in cohort.broken]
    total = len(cohort.scans) + len(failed)
    predictor = (load or load_predictor)(models)
    output = output or _default_output(predictor.labels)
    if extras.probabilities and not predictor.has_probabilities:
        raise ConfigError(
            f"{models}: a server returns masks only, not probabilities; load the run or the export instead"
        )
    report.describe(cohort, predictor, output, out)
    _log_trust(predictor)
    with open_writer(output, cohort, out, predictor.labels, predictor.identity) as writer:
        out.mkdir(parents=True, exist_ok=True)

        def fail(scan_id: str, reason: object) -> None:
            logger.warning("%s failed: %s", scan_id, reason)
            report.failed.append({"id": scan_id, "error": str(reason)})
            _remove_earlier(output, out, source, scan_id, predictor.labels)

        for name, reason in cohort.broken:
            fail(name, reason)

        def write(scan: Scan, volume: Volume, prediction: Prediction) -> None:
            warnings = predictor.check(volume)
            writer.write(scan, volume, prediction)
            if extras.probabilities and prediction.probabilities is not None:
                write_probabilities(out, scan, prediction.probabilities, predictor.labels)
            if extras.preview:
                write_preview(out, scan, volume, prediction.masks, predictor.labels, predictor.identity.text, warnings)
            if out.resolve() != source.resolve() and (outdated := extras.outdated(out, scan.id)):
                for path in outdated:
                    path.unlink()
                logger.warning("%s: removed %s, which an earlier prediction wrote", scan.id, _first_of(outdated))
            doubts[scan.id] = warnings
            if report.path is not None:
                report.scans.append(scan_entry(scan, prediction, predictor.labels, warnings))

        doubts: dict[str, list[str]] = {}
        probabilities = predictor.has_probabilities and (extras.probabilities or _uses_probabilities(output))
        finished = predict_scans(cohort.scans, predictor, write, probabilities=probabilities, timings=report.timings)
        for scan, fault in progress(finished, "predict", total=len(cohort.scans), unit="scan"):
            if fault is not None:
                fail(scan.id, fault)
                failed.append(scan.id)
                continue
            if warnings := doubts.pop(scan.id):
                logger.warning("%s: check this result: %s", scan.id, "; ".join(warnings))
        if len(failed) == total:
            if table := WRITERS.facts(output).get("table"):
                (out / table).unlink(missing_ok=True)  # left by an earlier call
            raise DataError(f"{source}: none of its {plural(total, 'scan')} could be segmented; see the reasons above")
    if failed:
        raise DataError(
            f"{source}: {len(failed)} of {plural(total, 'scan')} failed ({', '.join(failed)}), see the reasons above; "
            f"the others are in {out}{_describe_other_earlier(output, out, cohort)}"
        )
    return out


def predict_scans(
    scans: Iterable[Scan],
    predictor: BasePredictor,
    write: Callable[[Scan, Volume, Prediction], None],
    *,
    probabilities: bool = False,
    timings: dict[str, dict[str, float]] | None = None,
) -> Iterator[tuple[Scan, GitsegError | None]]:
    """Segment scans, reading the next one and writing the previous one at the same time.

    At most four scans are in memory at a time.

    Args:
        scans: the scans to segment.
        predictor: called in this thread; its ScanError or DataError concerns one scan only.
        write: called for the scans in order, in another thread.
        probabilities: also predict probabilities.
        timings: receives the seconds of each scan, by id, to "read", "predict" and "write" it.

    Returns:
        Iterator over (scan, None or its error), in the order of the scans.

    Raises:
        OSError: a file cannot be written.
    """
    timings = {} if timings is None else timings

    def read(scan):
        with _timed(timings, scan, "read"):
            return _read(scan)

    def segmented():
        for reading in _ahead(read, scans):
            scan, volume, error = reading.result()
            prediction = None
            if error is None:
                try:
                    with _timed(timings, scan, "predict"):
                        prediction = predictor.predict(volume, probabilities=probabilities)
                except (ScanError, DataError) as refused:
                    error = refused
            yield scan, volume, prediction, error

    def finish(item):
        scan, volume, prediction, error = item
        if error is None:
            try:
                with _timed(timings, scan, "write"):
                    write(scan, volume, prediction)
            except GitsegError as refused:
                error = refused
        return scan, error

    for writing in _ahead(finish, segmented()):
        yield writing.result()


@contextmanager
def _timed(timings: dict[str, dict[str, float]], scan: Scan, step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings.setdefault(scan.id, {})[step] = round(time.perf_counter() - start, 3)


def _log_trust(predictor: BasePredictor) -> None:
    for warning in predictor.warnings:
        logger.warning("check all results: %s", warning)
    if predictor.config is not None and not predictor.training_data:
        logger.info("warnings   scans are not compared with the training data, which the model does not describe")
    elif any(data.channels is None for data in predictor.training_data):
        logger.info("warnings   intensities are not compared with the training data, which the model does not describe")


def _default_output(labels: LabelSet) -> str:
    """Choose the output format for these labels."""
    competition = set(labels.names) <= set(UWMGI.names)
    output = _DEFAULT_OUTPUTS[0 if competition else 1]
    owner = "are the competition's" if competition else "are not the competition's"
    logger.info("format     %s, because the labels %s and no format was chosen", output, owner)
    return output


def _uses_probabilities(output: str) -> bool:
    return bool(WRITERS.facts(output).get("probabilities"))


def _remove_earlier(output: str, out: AnyPath, source: AnyPath, scan_id: str, labels: LabelSet) -> None:
    earlier = [*predicted_files(output, out, scan_id, labels), *probability_files(out, scan_id)]
    earlier += preview_files(out, scan_id)
    if not earlier:
        return
    if out.resolve() == source.resolve():  # these files may be the annotation of the scan
        logger.warning("%s: kept %s, which is not from this prediction", scan_id, _first_of(earlier))
        return
    for path in earlier:
        path.unlink()
    logger.warning("%s: removed its earlier prediction (%s)", scan_id, _first_of(earlier))


def _describe_earlier(output: str | None, out: AnyPath, source: AnyPath) -> str:
    """Describe the earlier predictions in the folder, as a clause for a message."""
    earlier: list[str] = []
    for name in (output,) if output else _DEFAULT_OUTPUTS:
        table = WRITERS.facts(name).get("table")
        earlier += [table] if table and (out / table).is_file() else predicted_scans(name, out)
    if not earlier or out.resolve() == source.resolve():
        return ""
    return f"; {out} still contains earlier predictions ({_first_of(earlier)})"


def _describe_other_earlier(output: str, out: AnyPath, cohort: Cohort) -> str:
    """Describe earlier predictions of scans that were not read, which may be unreadable ones, as a clause."""
    others = sorted(set(predicted_scans(output, out)) - {scan.id for scan in cohort.scans}) if cohort.broken else []
    return f", together with earlier predictions of {_first_of(others)}" if others else ""


def _first_of(names: list) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else str(names[0])


def _read_source(source: AnyPath) -> Cohort:
    return read_file(source) if source.is_file() else read_cohort(source, table=False, list_broken=True)


def _read(scan: Scan) -> tuple[Scan, Volume | None, GitsegError | None]:
    try:
        volume = scan.read_volume()
        _ = volume.percentiles  # computed here, in the reading thread
        return scan, volume, None
    except GitsegError as error:
        return scan, None, error
    except OSError as error:
        return scan, None, DataError(f"{error.filename}: {error.strerror}")


def _ahead(function: Callable[[Any], Any], items: Iterable) -> Iterator[Future]:
    """Call a function on each item in a thread, one item ahead of the result that is yielded."""
    with ThreadPoolExecutor(1) as pool:
        begun: deque[Future] = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 1:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
