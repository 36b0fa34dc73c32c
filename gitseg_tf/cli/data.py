"""Commands that create, check and serve data."""

from gitseg_tf.cli.parsers import command, data_argument, folds_argument, reading, reading_arguments, set_argument
from gitseg_tf.core.tensorflow_import import import_tensorflow
from gitseg_tf.core.text import plural
from gitseg_tf.errors import ConfigError, DataError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands."""
    purpose = "generate a synthetic cohort in the competition's layout"
    phantom = command(
        commands, "phantom", _phantom, purpose, examples=["gitseg phantom phantom --cases 4 --days 1 --seed 7"]
    )
    phantom.add_argument("out", help="output folder, new or empty")
    phantom.add_argument("--cases", type=int, default=10, help="number of patients (default: %(default)s)")
    phantom.add_argument("--days", type=int, default=2, help="scans per patient (default: %(default)s)")
    phantom.add_argument("--slices", type=int, default=80, help="slices per scan (default: %(default)s)")
    phantom.add_argument(
        "--seed", type=int, default=0, help="random seed; the same seed gives identical files (default: %(default)s)"
    )
    phantom.add_argument("--workers", type=int, help="worker processes (default: one per core)")

    _add_convert(commands)
    purpose = "flag anything unusual in a cohort or dataset, or rank a run's training scans by doubtful annotations"
    examples = ["gitseg inspect cohort", "gitseg inspect tfrecords/cohort --out cohort.html --strict"]
    examples += ["gitseg inspect runs/folds --out doubtful.html"]
    inspect = command(commands, "inspect", _inspect, purpose, examples=examples)
    inspect.add_argument("data", help="a cohort, TFRecords made by gitseg convert, or a run or cross-validation")
    inspect.add_argument(
        "--data",
        dest="records",
        metavar="DATA",
        help="for a run: TFRecords or a cohort (default: what the run was trained on)",
    )
    inspect.add_argument(
        "--out", default="inspection.html", metavar="FILE.html", help="HTML report to write (default: %(default)s)"
    )
    inspect.add_argument("--strict", action="store_true", help="exit with status 1 if there is an error or a warning")
    reading_arguments(inspect)

    purpose = "draw a preview of each random augmentation"
    examples = [
        "gitseg augment augmentations.png",
        "gitseg augment warp.png --data cohort --config uwmgi",
    ]
    augment = command(commands, "augment", _augment, purpose, examples=examples)
    augment.add_argument("out", metavar="FILE.png", help="image to write")
    data_argument(augment, "the phantom")
    augment.add_argument("--config", help="a YAML file with the augmentation ranges, or the name of a config")
    set_argument(augment)

    purpose = "prepare training data in separate processes"
    examples = ["gitseg data-service --workers 4", "gitseg data-service --dispatcher --port 5050"]
    examples += ["gitseg data-service --worker --dispatcher-address grpc://host:5050"]
    service = command(commands, "data-service", _data_service, purpose, examples=examples)
    role = service.add_mutually_exclusive_group(required=True)
    role.add_argument("--dispatcher", action="store_true", help="run the dispatcher; training connects to its address")
    role.add_argument("--worker", action="store_true", help="run a worker")
    role.add_argument("--workers", type=int, metavar="N", help="run a dispatcher and N workers on this machine")
    service.add_argument("--dispatcher-address", metavar="grpc://HOST:PORT", help="dispatcher that the worker joins")
    service.add_argument("--port", type=int, default=0, help="port to listen on (default: any free port)")
    service.add_argument("--host", help="host name at which other machines reach this one")


def _add_convert(commands) -> None:
    examples = ["gitseg convert cohort tfrecords/cohort", "gitseg convert cohort --dry-run"]
    examples += ["gitseg convert --verify tfrecords/cohort"]
    convert = command(
        commands, "convert", _convert, "convert a cohort to TFRecords, or verify existing ones", examples=examples
    )
    convert.add_argument(
        "data",
        nargs="?",
        help="a cohort: the competition's folders with train.csv, NIfTI or DICOM; see docs/how-to/data.md",
    )
    convert.add_argument("out", nargs="?", help="output folder, new or empty; not needed with --dry-run")
    convert.add_argument(
        "--dry-run", action="store_true", help="describe what would be converted, without writing anything"
    )
    convert.add_argument("--workers", type=int, help="scans read in parallel (default: one per core)")
    folds_argument(convert, "5")
    convert.add_argument("--seed", type=int, default=0, help="random seed of the split (default: %(default)s)")
    convert.add_argument("--resume", action="store_true", help="resume an interrupted conversion")
    convert.add_argument(
        "--exclude", nargs="+", default=[], metavar="ID", help="scans to leave out, such as case123_day20"
    )
    convert.add_argument(
        "--shard-mib", type=int, default=256, help="voxel data per shard in MiB (default: %(default)s)"
    )
    convert.add_argument(
        "--runner", choices=["local", "beam"], default="local", help="execution engine (default: %(default)s)"
    )
    convert.add_argument(
        "--beam-options",
        default="",
        metavar="=OPTIONS",
        help="options of Beam, such as --beam-options='--runner=FlinkRunner ...'",
    )
    convert.add_argument("--verify", metavar="OUT", help="verify everything in OUT instead of converting")
    reading_arguments(convert)


def _phantom(options) -> None:
    from gitseg_tf.phantom import make_phantom

    out = make_phantom(
        options.out,
        cases=options.cases,
        days=options.days,
        slices=options.slices,
        seed=options.seed,
        workers=options.workers,
    )
    print(f"cohort     {out}\npicture    {out / 'preview.png'}")


def _convert(options) -> None:
    if options.verify is not None and not options.data:
        return _verify(options.verify)
    if options.verify is not None or options.data is None or (options.out is None and not options.dry_run):
        options.wrong_usage("give DATA and OUT, or DATA and --dry-run, or --verify OUT alone")
    if "://" in options.data + (options.out or ""):
        import_tensorflow()
    folds = 5 if options.folds is None else options.folds
    if options.dry_run:
        from gitseg_tf.data.readers.summary import describe

        if not isinstance(folds, int):
            _check_fold_table(options, folds)
        print(*describe(options.data, **reading(options)), sep="\n")
        return
    from gitseg_tf.data.tfrecords.convert import convert

    dataset = convert(
        options.data,
        options.out,
        folds=folds,
        seed=options.seed,
        workers=options.workers,
        resume=options.resume,
        exclude=options.exclude,
        shard_bytes=options.shard_mib << 20,
        runner=options.runner,
        beam_options=options.beam_options,
        **reading(options),
    )
    print(f"dataset    {dataset.root}: {_counts(dataset)}, {plural(dataset.folds, 'fold')}")


def _verify(root: str) -> None:
    import_tensorflow()
    from gitseg_tf.data.tfrecords.verify import verify_dataset

    dataset = verify_dataset(root)
    size = sum(shard.bytes for shard in dataset.shards) / 2**20
    print(
        f"verified   {dataset.root}: {plural(len(dataset.shards), 'shard')} ({size:.0f} MiB), {_counts(dataset)}: "
        "sizes, CRC-32, and every record's id, shape, spacing, slice numbers, percentiles and label counts"
    )
    if dataset.pseudo_line:
        print(f"pseudo     {dataset.pseudo_line}")


def _counts(dataset) -> str:
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    patients, slices = len({scan.case for scan in scans}), sum(scan.shape[0] for scan in scans)
    return f"{plural(patients, 'patient')}, {plural(len(scans), 'scan')}, {plural(slices, 'slice')}"


def _check_fold_table(options, folds: str) -> None:
    from gitseg_tf.data.readers.registry import read_cohort
    from gitseg_tf.data.tfrecords.fold_table import folds_from_table

    folds_from_table(folds, read_cohort(options.data, **reading(options)).scans)


def _inspect(options) -> None:
    from gitseg_tf.core.paths import as_path
    from gitseg_tf.data.tfrecords.dataset import is_dataset
    from gitseg_tf.runs.cross_validation import is_cross_validation
    from gitseg_tf.runs.folder import has_begun

    out = as_path(options.out)
    if out.suffix != ".html" or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: must be an .html file in an existing folder")
    if has_begun(as_path(options.data)) or is_cross_validation(options.data):
        return _inspect_run(options, out)
    if options.records is not None:
        options.wrong_usage("--data is for a run; give the cohort or the dataset alone")
    if is_dataset(options.data):
        import_tensorflow()
    from gitseg_tf.inspection import inspect_data, summary_lines, write_page

    inspection = inspect_data(options.data, **reading(options))
    print("\n".join(summary_lines(inspection)))
    write_page(inspection, out)
    print(f"page       {options.out}")
    if options.strict and any(finding.severity != "note" for finding in inspection.findings):
        count = inspection.counted("error", "warning")
        raise DataError(f"{options.data}: {count}; see the list above or {options.out}")


def _inspect_run(options, out) -> None:
    if options.strict:
        options.wrong_usage("--strict is for a cohort or a dataset: a ranking has neither errors nor warnings")
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.core.paths import as_path
    from gitseg_tf.evaluation.disagreement import rank_training_scans, ranking_lines, write_ranking
    from gitseg_tf.evaluation.report.disagreement_page import write_disagreement_page

    run = as_path(options.data)

    def opened(records, folds):
        if options.records is None and records is None:
            raise ConfigError(f"{run}: the config does not record the training data; specify it with --data")
        return open_data(options.records or records, folds, **reading(options))

    ranking, labels = rank_training_scans(run, opened)
    print(*ranking_lines(ranking), sep="\n")
    write_ranking(out.with_suffix(".csv"), ranking)
    write_disagreement_page(out, ranking, labels, f"Doubtful annotations: {run.resolve().name}")
    print(f"table      {out.with_suffix('.csv')}\npage       {out}")


def _augment(options) -> None:
    from gitseg_tf.config import load_config, parse_assignment

    config = load_config(options.config, dict(map(parse_assignment, options.set)))
    import_tensorflow()
    from gitseg_tf.cli.dataset import open_data
    from gitseg_tf.core.paths import as_path
    from gitseg_tf.data.augment.preview import save_augment_preview

    dataset = open_data(options.data or config.data.path, config.data.folds, **reading(options))
    save_augment_preview(as_path(options.out), dataset, config)
    print(f"picture    {options.out}")


def _data_service(options) -> None:
    if options.worker != bool(options.dispatcher_address):
        options.wrong_usage("--worker and --dispatcher-address must be used together")
    if options.workers is not None and options.host:
        options.wrong_usage("--workers runs everything on this machine; leave out --host")
    import_tensorflow()
    from gitseg_tf.data.pipeline.service_servers import run_dispatcher, run_local, run_worker

    if options.dispatcher:
        run_dispatcher(options.port, options.host)
    elif options.worker:
        run_worker(options.dispatcher_address, options.port, options.host)
    else:
        run_local(options.workers, options.port)
