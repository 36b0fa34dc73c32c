"""What travels with an exported model: facts for programs, and a model card for people."""

import platform
from typing import Any

import tensorflow as tf
import tf_keras as keras

from gitseg_tf import __version__
from gitseg_tf.config import Config
from gitseg_tf.data.scans import ORGANS
from gitseg_tf.inference.ensemble import tta_words
from gitseg_tf.inference.postprocess import organ_settings
from gitseg_tf.training.trainer import Run

_SCORES = {
    "score": "score of the competition",
    "dice": "Dice, 3-D",
    "iou": "IoU",
    "hausdorff": "Hausdorff score",
    "hd95_mm": "HD95, mm",
    "mean_surface_mm": "mean surface distance, mm",
    "surface_dice": "surface Dice",
}
_STEPS = {
    "smooth_mm": "smoothing across slices, sigma {} mm",
    "threshold": "threshold {}",
    "fill_holes": "holes filled slice by slice",
    "smallest_ml": "components below {} ml removed",
    "largest_only": "all components but the largest removed",
    "gap_mm": "slices beyond a gap of {} mm removed",
}
_WEIGHTS = {
    "float32": "float32, constants of the graph",
    "bfloat16": "bfloat16, constants of the graph; the network computes in bfloat16, what is around it in float32, "
    "and the scores below are those of the run in float32",
}
_CARD = """# {name}

Segments large bowel, small bowel and stomach on abdominal MR scans. {kind} of gitseg-tf {version}.

**Not a medical device.** It is for research. No regulator has cleared it, and its masks must not be used for treatment
unless a qualified person has checked and corrected every contour.

## What it is

| | |
| --- | --- |
{table}

{around}

## Post-processing, {place}

{steps}

## Trained on

{trained}

## Scores

{scores}

## Limits

- Scans unlike those it was trained on (other scanners, sequences, contrast, resolutions, ages, or anatomy after
  surgery) may give wrong masks, and nothing in the answer says so.
{limits}
- Organs may overlap; probabilities are not calibrated.
"""
# What differs between the SavedModel, which has the whole way inside, and a file with the network alone.
_WHOLE_WAY = {
    "kind": "A TensorFlow SavedModel",
    "around": """\
Everything between a scan and its masks is in the graph: decoding of PNG, normalisation by the scan's 1st and 99th
percentile, cut and scaling to the network's input and back, windows, tiles, test-time augmentation, and all of the
post-processing below. Nothing is left to the caller.""",
    "place": "inside",
    "limits": """\
- Slices have to be in order, and of one scan: intensities are normalised over all that is sent. A part of a scan gives
  other masks than the whole.
- Without slice numbers, slices are taken for neighbours: use a signature with `numbers` where slices are missing.""",
}
_NETWORK_ALONE = {
    "around": """\
This is the network alone: normalised windows in, probabilities out. Normalisation by the scan's 1st and 99th
percentile, cut and scaling to the network's input and back, windows, tiles, test-time augmentation and the
post-processing below are left to the caller. `gitseg predict` does them, as `config.yaml` beside this file says.""",
    "place": "not inside",
    "limits": """\
- Windows that are prepared otherwise than in training give wrong masks. The scores above are those of the run in
  float32; what this format loses against them, `gitseg formats` measures.""",
}


def model_facts(config: Config) -> dict[str, Any]:
    """What a program wants to know of an exported model, for model.json.

    Args:
        config: of the run.

    Returns:
        dict of plain values: organs, geometry, post-processing, weights, versions.
    """
    data = config.data
    return {
        "name": config.name,
        "organs": list(ORGANS),
        "architecture": config.model.architecture,
        "backbone": config.model.backbone,
        "axes": {"image": "slice, row, column", "masks": "slice, row, column, organ", "spacing": "z, y, x in mm"},
        "normalisation": {"percentiles": [1, 99], "of": "the whole scan", "method": "inverted_cdf of numpy"},
        "window": {
            "slices": data.slices if data.patch is None else data.patch[0],
            "stride": data.stride,
            "stride_mm": data.stride_mm,
            "size": list(data.size),
            "patch": list(data.patch) if data.patch else None,
            "crop": data.crop,
            "pixel_mm": data.pixel_mm,
        },
        "windows_at_once": config.evaluation.batch_size,
        "views": {"overlap": config.evaluation.overlap, **config.evaluation.tta.model_dump(mode="json")},
        "postprocess": {
            organ: {"inside": settings.model_dump(), "outside": {}}
            for organ, settings in zip(ORGANS, organ_settings(config), strict=True)
        },
        "trained_with": {k: config.provenance.get(k) for k in ("gitseg_tf", "tensorflow", "tf_keras", "python")},
        "exported_with": {
            "gitseg_tf": __version__,
            "tensorflow": tf.__version__,
            "tf_keras": keras.__version__,
            "python": platform.python_version(),
        },
    }


def model_card(run: Run, facts: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """A model card (Mitchell et al. 2019, doi:10.1145/3287560.3287596) in Markdown.

    Args:
        run: the run.
        facts: from `model_facts`, with `weights`, as of `export`, or `format` where it is a file of another format.
        evaluation: what evaluation.json holds, or None.

    Returns:
        The text.
    """
    config = run.config
    return _CARD.format(
        name=config.name,
        version=__version__,
        table="\n".join(f"| {name} | {value} |" for name, value in _network(facts, tta_words(config))),
        steps="\n".join(f"- {organ}: {', '.join(_steps(facts, organ))}" for organ in ORGANS),
        trained=_trained(config),
        scores=_scores(evaluation),
        **_words(facts.get("format")),
    )


def _words(form: dict | None) -> dict[str, str]:
    if form is None:
        return _WHOLE_WAY
    opset = f", opset {form['opset']}" if "opset" in form else ""
    return _NETWORK_ALONE | {"kind": f"A network as `{form['file']}` ({form['name']}{opset})"}


def _network(facts: dict, augmentation: str) -> list[tuple[str, Any]]:
    window = facts["window"]
    shape = window["patch"] or [*window["size"], window["slices"]]
    kind = " voxels" if window["patch"] else " (rows, columns, slices)"
    form = facts.get("format")
    kept = f"{form['weights']}, activations {form['activations']}" if form else _WEIGHTS[facts["weights"]]
    return [
        ("network", f"{facts['architecture']}, encoder {facts['backbone']}"),
        ("input of the network", " x ".join(map(str, shape)) + kind),
        ("windows at once", (form and form["batch"]) or facts["windows_at_once"]),
        ("test-time augmentation", augmentation),
        ("weights", f"moving average of training's, best epoch; {kept}"),
        *(_file(form) if form else ()),
        ("organs", ", ".join(ORGANS)),
        ("trained with", _versions(facts["trained_with"])),
        ("exported with", _versions(facts["exported_with"])),
    ]


def _file(form: dict) -> list[tuple[str, Any]]:
    compared, calibrated = form["compared_with_float32"], form["calibrated_on"]
    rows = [(key, _tensor(form[key])) for key in ("input", "output")]
    if calibrated:
        used = f"{calibrated['windows']} windows of {len(calibrated['scans'])} scans of the training folds"
        rows.append(("ranges of integers from", used))
    if form["float32_operators"]:
        rows.append(("computed in float32", counts(form["float32_operators"])))
    fold = "the training folds" if compared["fold"] is None else f"fold {compared['fold']}"
    difference = f"at most {compared['largest_difference']:.1e}, mean {compared['mean_difference']:.1e}"
    rows.append(("probabilities, from float32's", f"{difference}, on {compared['windows']} windows of {fold}"))
    return [*rows, ("written and checked with", _versions(form["versions"]))]


def counts(operators: dict[str, int]) -> str:
    """How many of each operator, in words, of what `gitseg_tf.serving.conversion.float32_operators` gives."""
    return ", ".join(f"{count} {name}" for name, count in operators.items())


def _tensor(spec: dict) -> str:
    return f"`{spec['name']}` {spec['dtype']} [{', '.join('N' if n is None else str(n) for n in spec['shape'])}]"


def _versions(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "not recorded"


def _steps(facts: dict, organ: str) -> list[str]:
    settings = facts["postprocess"][organ]["inside"] or facts["postprocess"][organ]["outside"]
    return [text.format(settings[key]) for key, text in _STEPS.items() if settings[key]]


def _trained(config: Config) -> str:
    known = config.provenance
    cases = known.get("trained_on")
    lines = [
        f"{len(cases)} patients." if cases else "Patients: not recorded.",
        f"Fingerprint of the dataset: `{known.get('dataset', 'not recorded')}`.",
    ]
    if config.data.fold is not None:
        lines.append(f"Fold {config.data.fold} of the dataset was held out; it chose the epoch of the weights.")
    if "tuned" in known:
        lines.append(f"Post-processing was tuned on fold {known['tuned']['fold']}.")
    return "\n".join(lines)


def _scores(evaluation: dict | None) -> str:
    if evaluation is None:
        return "None: the run was not scored."
    intervals = evaluation.get("intervals") or {}
    level = f", with {intervals['level']:.0%} intervals over patients" if "level" in intervals else ""
    names = ["all", *(organ for organ in ORGANS if organ in evaluation.get("organs", {}))]
    lines = [
        f"Of fold {evaluation.get('fold')}{level}." if "fold" in evaluation else f"Of the run{level}.",
        *_warnings(evaluation),
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "| --- |" + " --- |" * len(names),
    ]
    for key, title in _SCORES.items():
        cells = [_cell(evaluation, intervals, key)]
        for organ in names[1:]:
            cells.append(_cell(evaluation["organs"][organ], intervals.get("organs", {}).get(organ, {}), key))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _warnings(evaluation: dict) -> list[str]:
    found = []
    if evaluation.get("trained_on"):
        found.append("The network was trained on some of these patients: the scores say nothing about new ones.")
    if evaluation.get("tuned_on"):
        found.append("Post-processing was tuned on some of these patients: the scores are optimistic.")
    return found


def _cell(values: dict, intervals: dict, key: str) -> str:
    value, interval = values.get(key), intervals.get(key)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def with_section(card: str, heading: str, section: str) -> str:
    """A model card with one more section at its end, in place of the one with that heading where there is one.

    Args:
        card: the card.
        heading: line that the section begins with.
        section: its text.

    Returns:
        The text.
    """
    return card.partition(f"\n{heading}\n")[0].rstrip("\n") + f"\n\n{section}"
