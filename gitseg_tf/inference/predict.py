"""Segmenting the scans of a folder, or of a file."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gitseg_tf.data.records import intensity_percentiles
from gitseg_tf.data.scans import Cohort, Scan, read_cohort, read_file, read_image
from gitseg_tf.errors import InputError, ScanError
from gitseg_tf.files import AnyPath, as_path
from gitseg_tf.inference.outputs import OUTPUTS, SUBMISSION, WriteScan, predicted_files, predicted_scans
from gitseg_tf.inference.predictor import load_predictor
from gitseg_tf.progress import progress, say_above


def predict_cohort(
    models: str | AnyPath | Sequence[str | AnyPath],
    source: str | AnyPath,
    out: str | AnyPath,
    output: str = "submission",
    say: Callable[[str], None] = say_above,
    load: Callable | None = None,
) -> AnyPath:
    """Segment every scan of a folder, or a single file; a scan that cannot be read does not stop the others.

    What an earlier call predicted of a scan that fails is removed, for nobody could tell it from what is made now.

    Args:
        models: runs, exported SavedModels or cross-validations, see `load_predictor`; of several the mean.
        source: a folder of any layout that `read_cohort` knows; contours are not read. Of train/ and test/ it is test/.
            Or a file that `read_file` knows.
        out: the folder for the predictions.
        output: of OUTPUTS.
        say: takes lines for the user.
        load: gives the predictor of the models, called with them and `say`; None is `load_predictor`.

    Returns:
        The folder.

    Raises:
        InputError: no model, models that do not go together, no scans, or scans that cannot be written so; and, when
            all others are written, that some have failed.
    """
    out = as_path(out)
    try:
        cohort = _read_source(as_path(source))
    except InputError as error:
        raise InputError(f"{error}{_all_there(output, out, as_path(source))}") from error
    remove_earlier = partial(_remove_earlier, output, out, as_path(source), say)
    for note in cohort.notes:
        say(note)
    failed = [name for name, _ in cohort.broken]
    total = len(cohort.scans) + len(failed)
    with OUTPUTS[output](cohort, out, say) as write:
        predict = (load or load_predictor)(models, say=say)
        out.mkdir(parents=True, exist_ok=True)
        for name, reason in cohort.broken:
            say(f"{name} failed: {reason}")
            remove_earlier(name)
        finished = predict_scans(cohort.scans, predict, write)
        for scan, error in progress(finished, "predict", total=len(cohort.scans), unit="scan"):
            if error is not None:
                say(f"{scan.id} failed: {error}")
                remove_earlier(scan.id)
                failed.append(scan.id)
        if len(failed) == total:
            if output == "submission":
                (out / SUBMISSION).unlink(missing_ok=True)  # of an earlier call
            raise InputError(f"{source}: none of its {total} scans could be segmented, the reasons are above")
    if failed:
        raise InputError(
            f"{source}: {len(failed)} of {total} scans failed for the reasons above ({', '.join(failed)}); "
            f"the others are in {out}{_others_there(output, out, cohort)}"
        )
    return out


def predict_scans(
    scans: Iterable[Scan], predict: Callable, write: WriteScan
) -> Iterator[tuple[Scan, InputError | None]]:
    """Read the next scan and write the last one while one is being segmented.

    No more than four scans are in memory, however many there are.

    Args:
        scans: to be read by `read_image`.
        predict: from `make_predictor`; called in this thread. A ScanError of its own is one scan's.
        write: takes (scan, image, masks) in their order, in another thread.

    Returns:
        (scan, None), or what is wrong with it, in the order of the scans.

    Raises:
        OSError: a file cannot be written.
    """

    def segmented():
        for reading in _ahead(_read, scans):
            scan, image, percentiles, error = reading.result()
            masks = None
            if error is None:
                try:
                    masks = predict(image, scan.numbers, percentiles, scan.spacing)
                except ScanError as refused:
                    error = refused
            yield scan, image, masks, error

    def finish(item):
        scan, image, masks, error = item
        if error is None:
            try:
                write(scan, image, masks)
            except InputError as refused:
                error = refused
        return scan, error

    for writing in _ahead(finish, segmented()):
        yield writing.result()


def _remove_earlier(output: str, out: AnyPath, source: AnyPath, say: Callable[[str], None], scan_id: str) -> None:
    earlier = predicted_files(output, out, scan_id)
    if not earlier:
        return
    if out.resolve() == source.resolve():  # they may be the contours that the scan came with
        say(f"{scan_id}: {_first_of(earlier)} stays, and is not of this prediction")
        return
    for path in earlier:
        path.unlink()
    say(f"{scan_id}: its earlier prediction is removed ({_first_of(earlier)})")


def _all_there(output: str, out: AnyPath, source: AnyPath) -> str:
    there = [SUBMISSION] if output == "submission" and (out / SUBMISSION).is_file() else predicted_scans(output, out)
    if not there or out.resolve() == source.resolve():
        return ""
    return f"; {out} holds what earlier calls predicted ({_first_of(there)})"


def _others_there(output: str, out: AnyPath, cohort: Cohort) -> str:
    """What is there of scans that were not read: one of which not even the name could be read may be among them."""
    others = sorted(set(predicted_scans(output, out)) - {scan.id for scan in cohort.scans}) if cohort.broken else []
    return f", beside what earlier calls predicted of {_first_of(others)}" if others else ""


def _first_of(names: list) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else str(names[0])


def _read_source(source: AnyPath) -> Cohort:
    return read_file(source) if source.is_file() else read_cohort(source, table=False, list_broken=True)


def _read(scan: Scan):
    try:
        image = read_image(scan)
        return scan, image, intensity_percentiles(image), None
    except InputError as error:
        return scan, None, None, error
    except OSError as error:
        return scan, None, None, InputError(f"{error.filename}: {error.strerror}")


def _ahead(function: Callable[[Any], Any], items: Iterable) -> Iterator[Future]:
    """Call a function of each item in a thread; when the first result is handed out, the second is being made."""
    with ThreadPoolExecutor(1) as pool:
        begun: deque[Future] = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 1:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
