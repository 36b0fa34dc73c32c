"""The file ensemble.yaml: runs and cross-validations, their weights, and the post-processing of their mean."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gitseg_tf.config.postprocess import PostprocessConfig
from gitseg_tf.core.paths import AnyPath, as_path, write_atomically
from gitseg_tf.core.text import one_line
from gitseg_tf.core.trees import parse_yaml, shown
from gitseg_tf.errors import RunError
from gitseg_tf.runs.cross_validation import is_cross_validation
from gitseg_tf.runs.run import load_run

# This file marks the folder of an ensemble; its evaluations are written next to it.
MARKER = "ensemble.yaml"
_HEADER = """\
# An ensemble of gitseg: the weighted mean of the members' probabilities, on the grid of the scan. A weight is a number,
# or one per label; only their ratios matter. Paths are relative to this file.
"""


@dataclass(frozen=True)
class FusedMember:
    """A member of an ensemble.

    Attributes:
        path: the folder of a run or of a cross-validation.
        weight: its weight relative to the others, for all labels or {label: weight}.
    """

    path: AnyPath
    weight: float | dict[str, float] = 1.0

    def weight_of(self, label: str) -> float:
        """The weight of a label; a label that is not listed has the weight 0."""
        return self.weight.get(label, 0.0) if isinstance(self.weight, dict) else self.weight


@dataclass(frozen=True)
class Fusion:
    """The content of ensemble.yaml.

    Attributes:
        path: the folder of the ensemble.
        members: at least two.
        postprocess: post-processing of the mean.
        tuned: on what weights and post-processing were tuned, as `provenance.tuned` of a run; None if they were not.
    """

    path: AnyPath
    members: tuple[FusedMember, ...]
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    tuned: dict[str, Any] | None = None

    @property
    def file(self) -> AnyPath:
        """The file in the folder."""
        return self.path / MARKER


def is_fusion(path: str | AnyPath) -> bool:
    """Check whether a path is the folder of an ensemble, or its ensemble.yaml."""
    path = as_path(path)
    return (path / MARKER).is_file() or (path.name == MARKER and path.is_file())


def read_fusion(path: str | AnyPath) -> Fusion:
    """Read an ensemble.yaml.

    Args:
        path: its folder, or the file.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = as_path(path)
    folder = path.parent if path.name == MARKER else path
    file = folder / MARKER
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read ({error}); write it again with gitseg ensemble") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("members"), list) or len(tree["members"]) < 2:
        raise _damaged(file, "it does not list two or more members")
    known = {"members", "postprocess", "provenance"}
    if unknown := sorted(set(map(str, tree)) - known):
        raise _damaged(file, f"unknown key {shown(unknown[0])}")
    try:
        postprocess = PostprocessConfig.model_validate(tree.get("postprocess") or {})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["postprocess", *map(str, problem["loc"])])
        raise _damaged(file, one_line(f"{where}: {problem['msg']}")) from None
    members = tuple(_member(file, entry) for entry in tree["members"])
    return Fusion(folder, members, postprocess, _tuned(file, tree.get("provenance")))


def write_fusion(fusion: Fusion) -> None:
    """Write an ensemble.yaml."""
    tree: dict[str, Any] = {
        "members": [{"run": _relative(member.path, fusion.path), "weight": member.weight} for member in fusion.members],
        "postprocess": fusion.postprocess.model_dump(mode="json"),
    }
    if fusion.tuned is not None:
        tree["provenance"] = {"tuned": fusion.tuned}
    fusion.path.mkdir(parents=True, exist_ok=True)
    write_atomically(fusion.file, (_HEADER + yaml.safe_dump(tree, sort_keys=False)).encode())


def check_fusion(fusion: Fusion) -> None:
    """Check that the members of a new ensemble are runs or cross-validations.

    Raises:
        RunError: another folder, or one that is listed twice.
    """
    for k, member in enumerate(fusion.members):
        if is_fusion(member.path):
            raise RunError(f"{member.path}: is an ensemble; list its runs instead")
        if not is_cross_validation(member.path):
            load_run(member.path)
        if member.path in [other.path for other in fusion.members[:k]]:
            raise RunError(f"{member.path}: is listed twice; give it a higher weight instead")


def normalized_weights(fusion: Fusion, labels: Sequence[str]) -> list[tuple[float, ...]]:
    """Compute the share of each member in the mean.

    Args:
        fusion: the ensemble.
        labels: the labels of its members.

    Returns:
        For each member one value per label; those of a label sum to 1.

    Raises:
        RunError: weights of an unknown label, or a label to which no member contributes.
    """
    for member in fusion.members:
        unknown = sorted(set(member.weight) - set(labels)) if isinstance(member.weight, dict) else []
        if unknown:
            raise _damaged(fusion.file, f"{member.path.name} has a weight for the unknown label {shown(unknown[0])}")
    columns = []
    for label in labels:
        weights = [member.weight_of(label) for member in fusion.members]
        if not sum(weights) > 0:
            raise _damaged(fusion.file, f"no member has a weight above 0 for {label}")
        columns.append([weight / sum(weights) for weight in weights])
    return list(zip(*columns, strict=True))


def _member(file: AnyPath, entry: Any) -> FusedMember:
    if not isinstance(entry, dict) or not isinstance(entry.get("run"), str) or set(entry) - {"run", "weight"}:
        raise _damaged(file, f"the member {shown(entry)} must have the keys run and weight")
    weight = entry.get("weight", 1.0)
    weights = list(weight.values()) if isinstance(weight, dict) else [weight]
    valid = all(isinstance(value, int | float) and not isinstance(value, bool) for value in weights)
    if not weights or not valid or not all(math.isfinite(value) and value >= 0 for value in weights):
        raise _damaged(file, f"the weight of {entry['run']} is {shown(weight)}; it must be one or more numbers >= 0")
    return FusedMember(_absolute(entry["run"], file), weight)


def _tuned(file: AnyPath, provenance: Any) -> dict[str, Any] | None:
    if provenance is None:
        return None
    tuned = provenance.get("tuned") if isinstance(provenance, dict) else None
    lists = ("cases", "scans")
    if not isinstance(tuned, dict) or "fold" not in tuned or not all(isinstance(tuned.get(k), list) for k in lists):
        raise _damaged(file, "provenance.tuned lacks fold, cases or scans")
    return tuned


def _absolute(text: str, file: AnyPath) -> AnyPath:
    if "://" in text:
        return as_path(text)
    path = file.parent / text
    short = Path(os.path.normpath(path)) if isinstance(path, Path) else path
    # Without "..", unless a symbolic link makes this another folder.
    return short if isinstance(short, Path) and short.exists() and short.samefile(path) else path


def _relative(path: AnyPath, folder: AnyPath) -> str:
    """Write a path such that ensemble and members can be moved together."""
    if isinstance(path, Path) and isinstance(folder, Path):
        return os.path.relpath(path.resolve(), folder.resolve())
    return str(path)


def _damaged(file: AnyPath, reason: str) -> RunError:
    return RunError(f"{file}: is damaged ({reason}); correct it, or write it again with gitseg ensemble")
