"""Commands that make, check and serve data."""

from functools import partial

from gitseg_tf import quiet
from gitseg_tf.commands.parsers import command
from gitseg_tf.errors import InputError


def add_parsers(commands) -> None:
    """Add the parsers of this file's commands to argparse's subparsers."""
    phantom = command(commands, "phantom", _phantom, "make a synthetic cohort in the competition's layout")
    phantom.add_argument("out", help="a new folder")
    phantom.add_argument("--cases", type=int, default=10, help="patients (%(default)s)")
    phantom.add_argument("--days", type=int, default=2, help="scans of each patient (%(default)s)")
    phantom.add_argument("--slices", type=int, default=80, help="slices of each scan (%(default)s)")
    phantom.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    phantom.add_argument("--workers", type=int, help="processes (one a core)")

    convert = command(commands, "convert", _convert, "convert a cohort to TFRecords, or check some")
    convert.add_argument(
        "data", nargs="?", help="the competition's folders with train.csv, NIfTI or DICOM; see docs/data.md"
    )
    convert.add_argument("out", nargs="?", help="a new folder; --dry-run needs none")
    convert.add_argument("--dry-run", action="store_true", help="say what would be converted, and write nothing")
    convert.add_argument("--workers", type=int, help="scans read at the same time (one a core)")
    convert.add_argument("--folds", type=int, default=5, help="folds by patient (%(default)s)")
    convert.add_argument("--seed", type=int, default=0, help="of the folds (%(default)s)")
    convert.add_argument("--resume", action="store_true", help="go on with an interrupted conversion")
    convert.add_argument("--exclude", nargs="+", default=[], metavar="ID", help="scans to leave out (case123_day20)")
    convert.add_argument("--shard-mib", type=int, default=256, help="voxels of a shard in MiB (%(default)s)")
    convert.add_argument("--runner", choices=["local", "beam"], default="local", help="who does it (%(default)s)")
    convert.add_argument(
        "--beam-options", default="", metavar="=OPTIONS", help="Beam's own: --beam-options='--runner=FlinkRunner ...'"
    )
    convert.add_argument("--verify", metavar="OUT", help="convert nothing, read OUT again and check all of it")
    convert.set_defaults(wrong_usage=convert.error)

    inspect = command(commands, "inspect", _inspect, "report what is in a cohort or dataset, and what is odd about it")
    inspect.add_argument("data", help="a source cohort, or TFRecords made by gitseg convert")
    inspect.add_argument("--out", default="inspection.html", metavar="FILE.html", help="the page (%(default)s)")
    inspect.add_argument("--strict", action="store_true", help="exit status 1 when there is an error or a warning")

    augment = command(commands, "augment", _augment, "draw a picture of what each random change does")
    augment.add_argument("out", help="the PNG")
    augment.add_argument("--data", help="TFRecords or a cohort; without it the phantom")
    augment.add_argument("--config", help="YAML file with the ranges")
    augment.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any config key, dotted")

    service = command(commands, "data-service", _data_service, "prepare training data in processes of their own")
    role = service.add_mutually_exclusive_group(required=True)
    role.add_argument("--dispatcher", action="store_true", help="run the dispatcher, whose address train.py takes")
    role.add_argument("--worker", action="store_true", help="run a worker")
    role.add_argument("--workers", type=int, metavar="N", help="run a dispatcher and N workers on this machine")
    service.add_argument("--dispatcher-address", metavar="grpc://HOST:PORT", help="of a worker's dispatcher")
    service.add_argument("--port", type=int, default=0, help="where to listen (a free one)")
    service.add_argument("--host", help="the name by which others reach this machine")
    service.set_defaults(wrong_usage=service.error)


def _phantom(options) -> None:
    from gitseg_tf.data.phantom import make_phantom

    out = make_phantom(options.out, options.cases, options.days, options.slices, options.seed, options.workers)
    print(f"cohort     {out}\npicture    {out / 'preview.png'}")


def _convert(options) -> None:
    if options.verify is not None and not options.data:
        return _verify(options.verify)
    if options.verify is not None or options.data is None or (options.out is None and not options.dry_run):
        options.wrong_usage("give DATA and OUT, or DATA and --dry-run, or --verify OUT alone")
    if "://" in options.data + (options.out or ""):
        quiet.import_tensorflow()
    if options.dry_run:
        from gitseg_tf.data.summary import describe

        print(*describe(options.data), sep="\n")
        return
    from gitseg_tf.data.convert import convert

    dataset = convert(
        options.data,
        options.out,
        options.folds,
        options.seed,
        options.workers,
        options.resume,
        options.exclude,
        options.shard_mib << 20,
        options.runner,
        options.beam_options,
    )
    print(f"dataset    {dataset.root}: {_counts(dataset)}, {dataset.folds} folds")


def _verify(root: str) -> None:
    quiet.import_tensorflow()
    from gitseg_tf.data.verify import verify_dataset

    dataset = verify_dataset(root)
    size = sum(shard.bytes for shard in dataset.shards) / 2**20
    print(
        f"verified   {dataset.root}: {len(dataset.shards)} shards ({size:.0f} MiB), {_counts(dataset)}: sizes, CRC-32, "
        "and every record's id, shape, spacing, slice numbers, percentiles and organ counts"
    )


def _counts(dataset) -> str:
    scans = [scan for shard in dataset.shards for scan in shard.scans]
    patients, slices = len({scan.case for scan in scans}), sum(scan.shape[0] for scan in scans)
    return f"{patients} patients, {len(scans)} scans, {slices} slices"


def _inspect(options) -> None:
    from gitseg_tf.data.dataset import is_dataset
    from gitseg_tf.files import as_path

    out = as_path(options.out)
    if out.suffix != ".html" or not out.parent.is_dir():
        raise InputError(f"--out {out}: give a file whose name ends in .html, in a folder that is there")
    if is_dataset(options.data):
        quiet.import_tensorflow()
    from gitseg_tf.data.inspect import inspect_data, summary_lines, write_page

    inspection = inspect_data(options.data)
    print("\n".join(summary_lines(inspection)), flush=True)
    write_page(inspection, out)
    print(f"page       {options.out}")
    if options.strict and any(finding.severity != "note" for finding in inspection.findings):
        found = inspection.counted("error", "warning")
        raise InputError(f"{options.data}: {found}, listed above and in {options.out}")


def _augment(options) -> None:
    from gitseg_tf.config import load_config, parse_assignment

    config = load_config(options.config, dict(map(parse_assignment, options.set)))
    quiet.import_tensorflow()
    from gitseg_tf.data.augment.preview import save_augment_preview
    from gitseg_tf.data.sources import open_dataset
    from gitseg_tf.files import as_path

    save_augment_preview(
        as_path(options.out), open_dataset(options.data or config.data.path, config.data.folds), config
    )
    print(f"picture    {options.out}")


def _data_service(options) -> None:
    if options.worker != bool(options.dispatcher_address):
        options.wrong_usage("--worker and --dispatcher-address go together")
    if options.workers is not None and options.host:
        options.wrong_usage("--workers are for this machine alone, without --host")
    quiet.import_tensorflow()
    from gitseg_tf.data.service_servers import run_dispatcher, run_local, run_worker

    say = partial(print, flush=True)
    if options.dispatcher:
        run_dispatcher(options.port, options.host, say)
    elif options.worker:
        run_worker(options.dispatcher_address, options.port, options.host, say)
    else:
        run_local(options.workers, options.port, say)
