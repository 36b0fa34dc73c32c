"""What self-contained HTML pages are made of: templates, charts as SVG, outlines of masks."""

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

from gitseg_tf.data.scans import ORGAN_COLORS, ORGANS

# Stands for the page's text colour while matplotlib draws, so that charts follow the light and the dark theme.
INK = "#0a0b0c"


def chart(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (5.6, 3.1)) -> dict:
    """Draw a chart in the page's colours.

    Args:
        title: of the chart.
        draw: draws on the axes, in `INK` where the page's text colour is meant.
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


def organ_style(organ: str) -> dict:
    """Colour and label of an organ, as arguments for matplotlib."""
    return {"color": tuple(c / 255 for c in ORGAN_COLORS[organ]), "label": organ.replace("_", " ")}


def outline(mask: np.ndarray) -> str:
    """An SVG path around the mask in pixels, or "" for an empty one."""
    lines = contourpy.contour_generator(z=np.pad(mask, 1).astype(np.float32)).lines(0.5)
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in _corners(line) - 0.5) + "Z" for line in lines)


def _corners(line: np.ndarray) -> np.ndarray:
    points = line[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def close_up(masks: np.ndarray) -> str:
    """The SVG view box of the image's own proportions that holds all organs."""
    height, width = masks.shape[1:]
    occupied = np.argwhere(masks.any(axis=0))
    if not len(occupied):
        return f"0 0 {width} {height}"
    (top, left), (bottom, right) = occupied.min(axis=0), occupied.max(axis=0) + 1
    scale = min(1.0, max((bottom - top) / height, (right - left) / width) * 1.15)
    x = min(max((left + right) / 2 - scale * width / 2, 0), width - scale * width)
    y = min(max((top + bottom) / 2 - scale * height / 2, 0), height - scale * height)
    return f"{x:.1f} {y:.1f} {scale * width:.1f} {scale * height:.1f}"


def page_environment(package: str) -> jinja2.Environment:
    """Where a page's template is rendered.

    Args:
        package: the one that holds the template; `page.css.j2` can be included beside.

    Returns:
        The environment: values are escaped; filters number(digits) and organ, test known, global organ_colors.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: _template(package, name)),
    )
    environment.filters |= {"number": _number, "organ": lambda organ: organ.replace("_", " ")}
    environment.tests["known"] = _is_known
    environment.globals["organ_colors"] = {o: f"rgb{ORGAN_COLORS[o]}" for o in ORGANS}
    return environment


def _template(package: str, name: str) -> str:
    home = "gitseg_tf" if name == "page.css.j2" else package
    return resources.files(home).joinpath(name).read_text(encoding="utf-8")


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None, digits: int = 3) -> str:
    return f"{value:,.{digits}f}" if _is_known(value) else "\N{EN DASH}"
