"""Building blocks of self-contained HTML pages: templates, label styles, charts as SVG, outlines of masks."""

import math
from collections.abc import Callable
from importlib import resources
from io import StringIO

import contourpy
import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gitseg_tf.labels import Label, LabelSet

# Placeholder for the page's text color while matplotlib draws, so that charts follow the light and the dark theme.
INK = "#0a0b0c"
# Number of labels that a chart shows and that a page lists without scrolling.
MOST_LABELS = 12
_MARKERS = "os^DvPX*<>hp"


def chart(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.6, 3.1)) -> dict:
    """Draw a chart in the page's colors.

    Args:
        title: of the chart.
        draw: function that draws on the axes, using `INK` for the page's text color.
        size: width and height in inches.

    Returns:
        {"title": title, "svg": the chart}.
    """
    style = {
        "svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10.5, "text.color": INK, "axes.edgecolor": INK,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": INK, "grid.alpha": 0.13, "axes.axisbelow": True,
    }  # fmt: skip
    buffer = StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    return {"title": title, "svg": Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))}


def label_style(label: Label) -> dict:
    """Return the color and title of a label as keyword arguments for matplotlib."""
    return {"color": label.hex_color, "label": label.title}


def short_title(label: Label, most: int = 24) -> str:
    """Truncate a label's title to `most` characters, so that it fits into a chart."""
    return label.title if len(label.title) <= most else f"{label.title[: most - 1]}…"


def label_marker(labels: LabelSet, label: Label) -> str:
    """Choose a marker that distinguishes a label without color; markers repeat after twelve labels."""
    return _MARKERS[labels.index(label.name) % len(_MARKERS)]


def label_class(labels: LabelSet, name: str) -> str:
    """Return a valid CSS class for a label, whatever characters its name contains."""
    return f"label-{labels.index(name)}"


def to_gray(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map intensities linearly to uint8: `low` and below to 0, `high` and above to 255."""
    width = high - low if high > low else 1.0
    return np.clip((image.astype(np.float32) - low) / width * 255, 0, 255).astype(np.uint8)


def outline(mask: np.ndarray) -> str:
    """Trace the outline of a mask as an SVG path in pixels, "" for an empty mask."""
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in _drop_collinear(line) - 0.5) + "Z" for line in lines)


def _drop_collinear(line: np.ndarray) -> np.ndarray:
    points = line[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def close_up(masks: np.ndarray) -> str:
    """Find the SVG view box with the image's aspect ratio that contains all masks, bool [L, H, W]."""
    height, width = masks.shape[1:]
    occupied = np.argwhere(masks.any(axis=0))
    if not len(occupied):
        return f"0 0 {width} {height}"
    (top, left), (bottom, right) = occupied.min(axis=0), occupied.max(axis=0) + 1
    scale = min(1.0, max((bottom - top) / height, (right - left) / width) * 1.15)
    x = min(max((left + right) / 2 - scale * width / 2, 0), width - scale * width)
    y = min(max((top + bottom) / 2 - scale * height / 2, 0), height - scale * height)
    return f"{x:.1f} {y:.1f} {scale * width:.1f} {scale * height:.1f}"


def page_environment(package: str, labels: LabelSet) -> jinja2.Environment:
    """Create the Jinja environment that renders a page's template.

    Args:
        package: the package that contains the template; the template can include `page.css.j2`.
        labels: the labels on the page.

    Returns:
        The environment. Values are escaped. It has the filters number(digits), title (of a label, by its name) and css
        (a label's CSS class), the test known, and the globals labels, most_labels and many_labels (whether the page
        has to collapse lists of labels).
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: _template(package, name)),
    )
    environment.filters |= {
        "number": _number,
        "title": lambda name: labels[labels.index(name)].title,
        "css": lambda name: label_class(labels, name),
    }
    environment.tests["known"] = _is_known
    environment.globals |= {
        "labels": list(labels),
        "most_labels": MOST_LABELS,
        "many_labels": len(labels) > MOST_LABELS,
    }
    return environment


def _template(package: str, name: str) -> str:
    home = "gitseg_tf.html" if name == "page.css.j2" else package
    return resources.files(home).joinpath(name).read_text(encoding="utf-8")


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if _is_known(value) else "\N{EN DASH}"
