"""Describe an exported model: machine-readable facts, and a model card."""

import platform
from typing import Any

import tensorflow as tf
import tf_keras as keras

from gitseg_tf import __version__
from gitseg_tf.config import Config
from gitseg_tf.core.text import plural
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.postprocess import label_settings
from gitseg_tf.runs.ensemble import RunEnsemble
from gitseg_tf.runs.folder import tuned_where
from gitseg_tf.runs.run import Run

_SCORES = {
    "score": "competition score",
    "score_volume": "competition score, form of public notebooks",
    "dice": "Dice, 3-D",
    "dice_2d": "Dice, 2-D",
    "iou": "IoU",
    "hausdorff": "Hausdorff score",
    "hausdorff_volume": "Hausdorff score, form of public notebooks",
    "hausdorff_mm": "Hausdorff, mm",
    "hd95_mm": "HD95, mm",
    "mean_surface_mm": "mean surface distance, mm",
    "surface_dice": "surface Dice",
    "surface_dice_2mm": "surface Dice at 2 mm",
    "surface_dice_3mm": "surface Dice at 3 mm",
    "added_path_mm": "added path length, mm",
}
_STEPS = {
    "smooth_mm": "smoothing across slices, sigma {} mm",
    "threshold": "threshold {}",
    "min_presence": "slices with a presence below {} removed",
    "fill_single_gaps": "single missing slices filled",
    "fill_holes": "holes filled slice by slice",
    "min_component_ml": "components below {} ml removed",
    "keep_largest_component": "all components but the largest removed",
    "min_adjacent_slices": "runs of fewer than {} adjacent slices removed",
    "max_gap_mm": "slices beyond a gap of {} mm removed",
}
_WEIGHTS = {
    "float32": "float32, stored as constants of the graph",
    "bfloat16": "bfloat16, stored as constants of the graph; the network computes in bfloat16, everything around it in "
    "float32, and the scores below are those of the run in float32",
}
_CARD = """# {name}

Segments {labels} in 3-D scans. {kind} exported by gitseg-tf {version}.

**Not a medical device.** It is for research. No regulator has cleared it, and its masks must not be used for treatment
unless a qualified person has checked and corrected every contour.

## Model

| | |
| --- | --- |
{table}

{around}

## Post-processing ({place})

{steps}

## Training data

{trained}

## Scores

{scores}

## Limits

- Scans unlike the training scans (other scanners, sequences, contrast, resolutions, ages, or anatomy after surgery) may
  give wrong masks. `gitseg predict` warns only about intensities, spacing and field of view far from theirs.
{limits}
- Labels may overlap; probabilities are not calibrated.
"""
# Text that differs between the SavedModel, which contains everything, and a file with only the network.
_WHOLE_PIPELINE = {
    "kind": "A TensorFlow SavedModel",
    "around": """\
Everything between a scan and its masks is in the graph: PNG decoding, normalization of the intensities, cropping and
resampling to the network's input and back, windows, tiles, test-time augmentation, and all of the post-processing
below. Nothing is left to the caller.""",
    "place": "included in the model",
    "limits": """\
- Send all slices of one scan, in order: intensities are normalized over everything that is sent, so part of a scan
  gives different masks than the whole.
- Without slice numbers, slices are assumed to be adjacent: use a signature with `numbers` where slices are missing.""",
}
_NETWORK_ALONE = {
    "around": """\
This is the network alone: normalized windows in, probabilities out. Normalization of the intensities, cropping and
resampling to the network's input and back, windows, tiles, test-time augmentation and the post-processing below are
left to the caller. `gitseg predict` does them, as configured by `config.yaml` next to this file.""",
    "place": "not included in the model",
    "limits": """\
- Windows that are not prepared as in training give wrong masks. The scores above are those of the run in
  float32; `gitseg formats` measures those of this format.""",
}


def model_facts(config: Config) -> dict[str, Any]:
    """Collect the machine-readable facts of an exported model for model.json.

    Args:
        config: the run's config.

    Returns:
        dict of plain values: labels, channels, geometry, post-processing, weights, versions.
    """
    data = config.data
    return {
        "name": config.name,
        "labels": config.label_set.to_tree(),
        "channels": list(config.channels or ["image"]),
        "architecture": config.model.architecture,
        "backbone": config.model.backbone,
        "axes": {
            "image": "slice, row, column, channel",
            "masks": "slice, row, column, label",
            "spacing": "z, y, x in mm",
        },
        "intensity": data.model_dump(mode="json").get("intensity"),
        "window": {
            "plane": data.plane,
            "slices": data.window_slices if data.patch is None else data.patch[0],
            "stride": data.window_stride,
            "stride_mm": data.window_stride_mm,
            "size": list(data.input_size),
            "patch": list(data.patch) if data.patch else None,
            "crop": data.crop,
            "pixel_mm": data.pixel_mm,
        },
        "windows_at_once": config.evaluation.batch_size,
        "views": {"overlap": config.evaluation.overlap, **config.evaluation.tta.model_dump(mode="json")},
        "postprocess": {
            name: {"inside": settings.model_dump(), "outside": {}}
            for name, settings in zip(config.label_set.names, label_settings(config), strict=True)
        },
        "trained_with": {k: config.provenance.get(k) for k in ("gitseg_tf", "tensorflow", "tf_keras", "python")},
        "exported_with": {
            "gitseg_tf": __version__,
            "tensorflow": tf.__version__,
            "tf_keras": keras.__version__,
            "python": platform.python_version(),
        },
    }


def model_card(
    run: Run | RunEnsemble, facts: dict[str, Any], evaluation: dict[str, Any] | None, reason: str | None = None
) -> str:
    """Write a model card (Mitchell et al. 2019, doi:10.1145/3287560.3287596) in Markdown.

    Args:
        run: the run, or the runs of a cross-validation.
        facts: from `model_facts`, with `weights` as for `export`, or `format` for a file of another format.
        evaluation: the content of evaluation.json, or None.
        reason: why that of the run's folder is not used, or None.

    Returns:
        The text.
    """
    config = run.config
    return _CARD.format(
        name=config.name,
        version=__version__,
        table="\n".join(f"| {name} | {value} |" for name, value in _network(facts, tta_words(config))),
        labels=", ".join(label.title for label in config.label_set),
        steps="\n".join(_all_steps(facts)),
        trained=_trained(config, facts.get("networks")),
        scores=_scores(
            evaluation,
            config.label_set.names,
            reason or f"the {'cross-validation' if 'networks' in facts else 'run'} was not evaluated",
        ),
        **_words(facts.get("format")),
    )


def _words(form: dict | None) -> dict[str, str]:
    if form is None:
        return _WHOLE_PIPELINE
    opset = f", opset {form['opset']}" if "opset" in form else ""
    return _NETWORK_ALONE | {"kind": f"A network as `{form['file']}` ({form['name']}{opset})"}


def _network(facts: dict, augmentation: str) -> list[tuple[str, Any]]:
    window = facts["window"]
    shape = window["patch"] or [*window["size"], window["slices"]]
    kind = " voxels" if window["patch"] else " (rows, columns, slices)"
    channels = len(facts["channels"])
    kind += f", {channels} channels" if channels > 1 else ""
    form = facts.get("format")
    kept = f"{form['weights']}, activations {form['activations']}" if form else _WEIGHTS[facts["weights"]]
    return [
        ("network", f"{facts['architecture']}, encoder {facts['backbone']}"),
        ("input of the network", " x ".join(map(str, shape)) + kind),
        ("windows per batch", (form and form["batch"]) or facts["windows_at_once"]),
        ("test-time augmentation", augmentation),
        *([("networks", f"mean of {facts['networks']}, one per fold")] if "networks" in facts else []),
        ("weights", f"moving average over training, best epoch; {kept}"),
        *(_file(form) if form else ()),
        ("labels", ", ".join(label["name"] for label in facts["labels"])),
        ("channels", ", ".join(facts["channels"])),
        ("trained with", _versions(facts["trained_with"])),
        ("exported with", _versions(facts["exported_with"])),
    ]


def _file(form: dict) -> list[tuple[str, Any]]:
    compared, calibrated = form["compared_with_float32"], form["calibrated_on"]
    rows = [(key, _tensor(form[key])) for key in ("input", "output")]
    if calibrated:
        scans = plural(len(calibrated["scans"]), "scan")
        used = f"{plural(calibrated['windows'], 'window')} of {scans} of the training folds"
        rows.append(("integer ranges calibrated on", used))
    if form["float32_operators"]:
        rows.append(("computed in float32", counts(form["float32_operators"])))
    fold = "the training folds" if compared["fold"] is None else f"fold {compared['fold']}"
    difference = f"at most {compared['largest_difference']:.1e}, mean {compared['mean_difference']:.1e}"
    rows.append(("difference from float32", f"{difference}, on {plural(compared['windows'], 'window')} of {fold}"))
    return [*rows, ("written and checked with", _versions(form["versions"]))]


def counts(operators: dict[str, int]) -> str:
    """Format the counts from `gitseg_tf.export.formats.tflite.float32_operators`."""
    return ", ".join(f"{count} {name}" for name, count in operators.items())


def _tensor(spec: dict) -> str:
    return f"`{spec['name']}` {spec['dtype']} [{', '.join('N' if n is None else str(n) for n in spec['shape'])}]"


def _versions(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "not recorded"


def _all_steps(facts: dict) -> list[str]:
    """Write a line for each group of labels with the same steps."""
    groups: dict[str, list[str]] = {}
    for name, where in facts["postprocess"].items():
        settings = where["inside"] or where["outside"]
        steps = ", ".join(text.format(settings[key]) for key, text in _STEPS.items() if settings[key])
        groups.setdefault(steps, []).append(name)
    return [f"- {', '.join(names)}: {steps}" for steps, names in groups.items()]


def _trained(config: Config, networks: int | None = None) -> str:
    known = config.provenance
    cases = known.get("trained_on")
    lines = [
        f"{plural(len(cases), 'patient')}." if cases else "Patients: not recorded.",
        f"Dataset fingerprint: `{known.get('dataset', 'not recorded')}`.",
    ]
    if networks:
        lines.append(
            f"Each of the {networks} networks held out another fold, and used it to choose the epoch of its weights."
        )
    elif config.data.fold is not None:
        lines.append(
            f"Fold {config.data.fold} of the dataset was held out, and used to choose the epoch of the weights."
        )
    if isinstance(teacher := known.get("teacher"), dict):
        name, weights = teacher.get("name"), str(teacher.get("weights"))
        lines.append(f"Distilled from the probabilities of {name}, weights `{weights}`.")
    if "tuned" in known:
        lines.append(f"Post-processing was tuned on {tuned_where(known['tuned'])}.")
    return "\n".join(lines)


def _scores(evaluation: dict | None, labels: tuple[str, ...], reason: str) -> str:
    if evaluation is None:
        return f"None: {reason}."
    intervals = evaluation.get("intervals") or {}
    level = f", with {intervals['level']:.0%} intervals over patients" if "level" in intervals else ""
    names = ["all", *(name for name in labels if name in evaluation.get("labels", {}))]
    where = f"Scores on fold {evaluation.get('fold')}" if "fold" in evaluation else "Scores of the run"
    if evaluation.get("fold") == "all":
        where = "Out-of-fold scores of the single networks: each scan was scored by the one that was not trained on it"
    lines = [
        f"{where}{level}.",
        *_warnings(evaluation),
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for key, title in _SCORES.items():
        cells = [_cell(evaluation, intervals, key)]
        for name in names[1:]:
            cells.append(_cell(evaluation["labels"][name], intervals.get("labels", {}).get(name, {}), key))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _warnings(evaluation: dict) -> list[str]:
    warnings = []
    if evaluation.get("fold") == "all":
        warnings.append(
            "This model averages these networks; the mean has not been scored on patients new to all of them."
        )
    if evaluation.get("trained_on"):
        warnings.append("The network was trained on some of these patients: the scores say nothing about new ones.")
    if evaluation.get("tuned_on"):
        warnings.append("Post-processing was tuned on some of these patients: the scores are optimistic.")
    return warnings


def _cell(values: dict, intervals: dict, key: str) -> str:
    value, interval = values.get(key), intervals.get(key)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def with_section(card: str, heading: str, section: str) -> str:
    """Append a section to a model card, or replace the last section if it has the same heading.

    Args:
        card: the model card.
        heading: first line of the section.
        section: text of the section.

    Returns:
        The new text of the card.
    """
    return card.partition(f"\n{heading}\n")[0].rstrip("\n") + f"\n\n{section}"
