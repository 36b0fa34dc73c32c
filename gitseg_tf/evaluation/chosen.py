"""Which scans the report shows slice by slice, and their pictures, without keeping those of all scans."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gitseg_tf.evaluation.scroller import ScanPictures

WORST = 5
_ENDINGS = {2: "nd", 3: "rd"}


def choose_scans(
    scores: dict[str, float | None], distances: dict[str, float] | None = None, worst: int = WORST
) -> dict[str, str]:
    """Choose the best scan, the median one and the worst ones by score, and the one with the largest distance.

    Args:
        scores: {scan: its score, None where it has none}.
        distances: {scan: the largest Hausdorff distance of its organs}, of the scans that have any.
        worst: how many of the worst.

    Returns:
        {scan: "best", "median", "worst", "2nd worst", ..., "largest Hausdorff"} in this order. A scan is chosen once:
        of few scans the median one is one of the worst ("median and 2nd worst"), two scans have no median one, a single
        scan is the best; scans without a score (no organ in the truth) come into
        question only where no scan has one.
    """
    ranking = _rank(scores)
    if not ranking:
        return {}
    roles = {ranking[0]: "best"}
    if len(ranking) > 2:
        roles[ranking[len(ranking) // 2]] = "median"
    for place, scan in enumerate(ranking[: -worst - 1 : -1], 1):
        name = "worst" if place == 1 else f"{place}{_ENDINGS.get(place, 'th')} worst"
        if roles.get(scan) == "median":  # of few scans
            name = f"median and {name}"
        if roles.get(scan) != "best":
            roles[scan] = name
    if distances:
        roles.setdefault(max(distances, key=distances.get), "largest Hausdorff")
    return roles


def may_be_chosen(
    scores: dict[str, float | None], left: int, distances: dict[str, float] | None = None, worst: int = WORST
) -> set[str]:
    """The scans that `choose_scans` can still choose once the rest has been scored, whatever the rest's scores.

    Args:
        scores: of the scans so far.
        left: how many scans are still to come, at most.
        distances, worst: as for `choose_scans`.
    """
    ranking = _rank(scores)
    count = len(ranking)
    # Scans to come, a better and b worse, move place r to r + a of count + a + b, with a + b <= left. The middle place
    # (count + a + b) // 2 is r + a only if count + b - a is 2r or 2r + 1.
    middle = {scan for place, scan in enumerate(ranking) if -left <= 2 * place - count <= left}
    middle |= {scan for place, scan in enumerate(ranking) if -left <= 2 * place + 1 - count <= left}
    farthest = [max(distances, key=distances.get)] if distances else []
    return middle | {*ranking[:1], *ranking[-worst:], *farthest}


def _rank(scores: dict[str, float | None]) -> list[str]:
    scored = [scan for scan, score in scores.items() if score is not None] or list(scores)
    return sorted(scored, key=lambda scan: -(scores[scan] or 0))


@dataclass(frozen=True)
class Chosen:
    """Pictures of a scan and why it is shown."""

    role: str
    pictures: ScanPictures


class PictureShelf:
    """The pictures of the scans that may be chosen, in a temporary folder that is gone when the context is left.

    Args:
        count: how many scans there are, at most.
        worst: how many of the worst scans are chosen.
    """

    def __init__(self, count: int, worst: int = WORST):
        self._count, self._worst = count, worst
        self._scores: dict[str, float | None] = {}
        self._distances: dict[str, float] = {}
        self._kept: dict[str, Path] = {}

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="gitseg-report-")
        return self

    def __exit__(self, *_):
        self._folder.cleanup()

    def add(self, scan: str, rows: list[dict], draw: Callable[[], ScanPictures]) -> None:
        """Take a scan.

        Args:
            scan: its name.
            rows: as `scores.score_scan` gives them.
            draw: makes its pictures; called only where the scan may be chosen.
        """
        scores = [row["score"] for row in rows if row["truth_ml"] > 0]
        self._scores[scan] = float(np.mean(scores)) if scores else None
        distances = [row["hausdorff_mm"] for row in rows if math.isfinite(row["hausdorff_mm"])]
        if distances:
            self._distances[scan] = max(distances)
        wanted = may_be_chosen(self._scores, self._count - len(self._scores), self._distances, self._worst)
        for dropped in self._kept.keys() - wanted:
            self._kept.pop(dropped).unlink()
        if scan in wanted:
            self._kept[scan] = Path(self._folder.name) / f"{len(self._scores)}"
            self._kept[scan].write_text(json.dumps(asdict(draw())), encoding="utf-8")

    def chosen(self) -> list[Chosen]:
        """The chosen scans, in the order of `choose_scans`."""
        roles = choose_scans(self._scores, self._distances, self._worst)
        return [Chosen(role, ScanPictures(**json.loads(self._kept[scan].read_text()))) for scan, role in roles.items()]
