"""Choose the scans and labels that the report shows, without keeping the images of all scans."""

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gitseg_tf.evaluation.metrics.scores import scan_score
from gitseg_tf.evaluation.report.slices import ScanPictures

WORST = 5
_ENDINGS = {2: "nd", 3: "rd"}


def choose_scans(
    scores: dict[str, float | None], distances: dict[str, float] | None = None, worst: int = WORST
) -> dict[str, str]:
    """Choose the best scan, the median one and the worst ones by score, and the one with the largest distance.

    Args:
        scores: {scan: its score or None}.
        distances: {scan: the largest Hausdorff distance of its labels}, for the scans that have any.
        worst: number of worst scans to choose.

    Returns:
        {scan: "best", "median", "worst", "2nd worst", ..., "largest Hausdorff"} in this order. Each scan occurs once:
        among few scans the median is also one of the worst ("median and 2nd worst"), two scans have no median, and a
        single scan is the best. Scans without a score (no label in the reference) are chosen only if no scan has one.
    """
    ranking = _rank(scores)
    if not ranking:
        return {}
    roles = {ranking[0]: "best"}
    if len(ranking) > 2:
        roles[ranking[len(ranking) // 2]] = "median"
    for place, scan in enumerate(ranking[: -worst - 1 : -1], 1):
        name = "worst" if place == 1 else f"{place}{_ENDINGS.get(place, 'th')} worst"
        if roles.get(scan) == "median":  # happens if there are few scans
            name = f"median and {name}"
        if roles.get(scan) != "best":
            roles[scan] = name
    if distances:
        roles.setdefault(max(distances, key=distances.__getitem__), "largest Hausdorff")
    return roles


def may_be_chosen(
    scores: dict[str, float | None], left: int, distances: dict[str, float] | None = None, worst: int = WORST
) -> set[str]:
    """Find the scans that `choose_scans` may still choose after the remaining scans are scored.

    Args:
        scores: scores of the scans so far.
        left: maximum number of remaining scans.
        distances, worst: as for `choose_scans`.

    Returns:
        The ids of these scans.
    """
    ranking = _rank(scores)
    count = len(ranking)
    # If a of the remaining scans are better and b are worse, rank r becomes r + a of count + a + b, a + b <= left. The
    # middle rank (count + a + b) // 2 is r + a only if count + b - a is 2r or 2r + 1.
    middle = {scan for rank, scan in enumerate(ranking) if -left <= 2 * rank - count <= left}
    middle |= {scan for rank, scan in enumerate(ranking) if -left <= 2 * rank + 1 - count <= left}
    farthest = [max(distances, key=distances.__getitem__)] if distances else []
    return middle | {*ranking[:1], *ranking[-worst:], *farthest}


def _rank(scores: dict[str, float | None]) -> list[str]:
    scored = [scan for scan, score in scores.items() if score is not None] or list(scores)
    return sorted(scored, key=lambda scan: -(scores[scan] or 0))


def worst_labels(scores: dict[str, float | None], most: int) -> list[str]:
    """Choose the labels to show if there are too many.

    Args:
        scores: {label: its mean Dice, or None or NaN}.
        most: maximum number of labels to show.

    Returns:
        All labels in the given order if they are few enough; otherwise the worst, worst first. Labels without a score
        come last.
    """
    if len(scores) <= most:
        return list(scores)
    known = {name: score for name, score in scores.items() if score is not None and math.isfinite(score)}
    return [*sorted(known, key=known.__getitem__), *(name for name in scores if name not in known)][:most]


@dataclass(frozen=True)
class Chosen:
    """Images of a scan and the reason for showing it."""

    role: str
    pictures: ScanPictures


class PictureShelf:
    """Stores the images of the scans that may be chosen in a temporary folder, as a context manager.

    Args:
        count: maximum number of scans.
        worst: number of worst scans to choose.
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
        """Add a scan.

        Args:
            scan: its id.
            rows: from `scores.score_scan`.
            draw: function that draws its images; called only if the scan may be chosen.
        """
        self._scores[scan] = scan_score(rows)
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
        """Return the chosen scans, in the order of `choose_scans`."""
        roles = choose_scans(self._scores, self._distances, self._worst)
        return [Chosen(role, ScanPictures(**json.loads(self._kept[scan].read_text()))) for scan, role in roles.items()]
