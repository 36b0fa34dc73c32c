"""Labels: which structures a dataset annotates, and how they are named, drawn and written.

Every dataset and every run has a `LabelSet`. Nothing in the package depends on the name of a label, except the preset
of the UW-Madison competition in this module and the anatomical checks of the inspection.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any

from gitseg_tf.core.palette import palette
from gitseg_tf.core.paths import as_path
from gitseg_tf.core.trees import parse_yaml, shown
from gitseg_tf.errors import ConfigError

MAX_LABELS = 255
_LONGEST_NAME = 200  # bytes; file systems allow 255, to which prefixes and endings are added
_NAME = re.compile(r"[^\s/\\,;:\"'<>|?*\x00-\x1f](?:[^/\\,;:\"'<>|?*\x00-\x1f]*[^\s/\\,;:\"'<>|?*\x00-\x1f])?")
_HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Code:
    """A DICOM coded concept for the structure that a label denotes.

    Attributes:
        value: the code value, such as "78961009".
        scheme: the coding scheme designator, such as "SCT" for SNOMED CT.
        meaning: the code meaning, such as "Spleen".
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Label:
    """One structure to segment.

    Attributes:
        name: its name in files, tables and reports; must be usable as a file name.
        color: (red, green, blue), each from 0 to 255.
        aliases: other names for it; case, spaces and punctuation are ignored.
        roi_name: its name in the RT structure sets that are written; None for the label's name.
        code: its DICOM coded concept, or None.

    Example:
        >>> Label("large_bowel", color=(230, 159, 0), aliases=("colon",)).hex_color
        '#e69f00'
    """

    name: str
    color: tuple[int, int, int]
    aliases: tuple[str, ...] = ()
    roi_name: str | None = None
    code: Code | None = None

    @property
    def title(self) -> str:
        """The name as displayed, such as "large bowel"."""
        return self.name.replace("_", " ")

    @property
    def hex_color(self) -> str:
        """The color in CSS notation, such as "#e69f00"."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)

    def is_named(self, name: str) -> bool:
        """Check whether a name from a file, an ROI or a table denotes this label."""
        return normalized(name) in {normalized(n) for n in (self.name, *self.aliases, self.roi_name or self.name)}


@dataclass(frozen=True)
class LabelSet(Sequence[Label]):
    """The labels of a dataset or a run, in the order of their masks and of a network's outputs.

    Attributes:
        labels: up to 255 labels with distinct names and aliases; empty where nothing is annotated.

    Raises:
        ConfigError: there are too many labels, or two of them share a name.

    Example:
        >>> labels = LabelSet.of("liver", "spleen")
        >>> labels.names, len(labels), labels.index("spleen")
        (('liver', 'spleen'), 2, 1)
        >>> labels.match("Liver").name
        'liver'
    """

    labels: tuple[Label, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        if len(self.labels) > MAX_LABELS:
            raise ConfigError(
                f"{len(self.labels)} labels are too many; at most {MAX_LABELS} are supported, leave some out"
            )
        owners: dict[str, str] = {}
        for label in self.labels:
            for name in {normalized(n) for n in (label.name, *label.aliases)}:
                if name in owners:
                    what = (
                        f"label {label.name!r} is defined twice"
                        if owners[name] == label.name
                        else (f"labels {owners[name]!r} and {label.name!r} share the name {name!r}")
                    )
                    raise ConfigError(f"{what}; give each label its own names and aliases")
                owners[name] = label.name
        object.__setattr__(self, "_index", {label.name: i for i, label in enumerate(self.labels)})

    @classmethod
    def of(cls, *names: str) -> "LabelSet":
        """Create labels with the given names and with colors from the palette.

        Raises:
            ConfigError: a name cannot be used as a file name, or as for LabelSet.
        """
        return cls.from_tree(list(names))

    @classmethod
    def from_tree(cls, tree: Any, where: str = "labels") -> "LabelSet":
        """Create labels from parsed YAML or JSON.

        Args:
            tree: a list of names or of mappings with name and optionally color ("#rrggbb" or [r, g, b]; otherwise from
                the palette), aliases, roi_name and code {value, scheme, meaning}; or {"labels": such a list}.
            where: the prefix of error messages.

        Raises:
            ConfigError: the tree is invalid; the message names the label, the error and what is allowed.
        """
        if isinstance(tree, dict) and set(tree) == {"labels"}:
            tree = tree["labels"]
        if isinstance(tree, LabelSet):
            return tree
        if not isinstance(tree, list | tuple):
            raise ConfigError(f"{where}: must be a list of labels, got {_kind(tree)}")
        if not tree:
            raise ConfigError(f"{where}: is empty; name at least one label")
        raw = [_checked_label(item, f"{where}[{i}]") for i, item in enumerate(tree[: MAX_LABELS + 1])]
        taken = {label["color"] for label in raw if "color" in label}
        colorless = [label for label in raw if "color" not in label]
        free = [color for color in palette(len(raw)) if color not in taken] if colorless else []
        for label, color in zip(colorless, free, strict=False):
            label["color"] = color
        return cls(tuple(Label(**label) for label in raw))

    def to_tree(self) -> list[dict[str, Any]]:
        """Convert the labels to plain lists and mappings for YAML or JSON, which `from_tree` reads back."""
        return [
            {"name": label.name, "color": label.hex_color}
            | ({"aliases": list(label.aliases)} if label.aliases else {})
            | ({"roi_name": label.roi_name} if label.roi_name else {})
            | ({"code": {f.name: getattr(label.code, f.name) for f in fields(Code)}} if label.code else {})
            for label in self.labels
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(self._index)

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """The colors of the labels, (red, green, blue), each from 0 to 255."""
        return tuple(label.color for label in self.labels)

    def index(self, name: str) -> int:  # type: ignore[override]
        """Return the position of a label.

        Raises:
            ConfigError: no label has this name; the message suggests a similar one.
        """
        if name not in self._index:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known labels are {_listed(self.names)}"
            raise ConfigError(f"unknown label {name!r}; {hint}")
        return self._index[name]

    def match(self, name: str) -> Label | None:
        """Find the label that a name from a file, an ROI or a table denotes, by name, alias or ROI name; else None."""
        spelled = normalized(name)
        exact = next((label for label in self.labels if normalized(label.name) == spelled), None)
        return exact or next((label for label in self.labels if label.is_named(name)), None)

    def subset(self, names: Iterable[str]) -> "LabelSet":
        """Select labels by name, in the order of the names.

        Raises:
            ConfigError: a name is unknown or given twice.
        """
        return LabelSet(tuple(self.labels[self.index(name)] for name in names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index):
        return self.labels[index]

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __contains__(self, name: object) -> bool:
        return name in self._index or name in self.labels


def read_labels(source: str | PathLike) -> LabelSet:
    """Read labels from a file, such as `gitseg labels DATA` prints, or return a preset.

    Args:
        source: the name of a preset in `PRESETS`, or a YAML file with the content that `LabelSet.from_tree` expects.

    Returns:
        The labels.

    Raises:
        ConfigError: the source is neither a preset nor a readable file, or its YAML or its labels are invalid.

    Example:
        >>> read_labels("uwmgi").names
        ('large_bowel', 'small_bowel', 'stomach')
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    path = as_path(source)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = f"give a YAML file of labels, or the name of a preset ({', '.join(PRESETS)})"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {hint}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: invalid YAML ({error})") from None
    try:
        return LabelSet.from_tree(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def normalized(name: str) -> str:
    """Normalize a name for comparison: lower case, without spaces and punctuation ("Bowel_Large" -> "bowellarge")."""
    return re.sub(r"[\W_]", "", name.lower()) or name.lower()


def _checked_label(item: Any, where: str) -> dict[str, Any]:
    """Validate a name or a mapping and return the fields of its Label."""
    if isinstance(item, Label):
        return {f.name: getattr(item, f.name) for f in fields(Label)}
    tree = {"name": item} if isinstance(item, str) else item
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: must be a name or a mapping, got {_kind(item)}")
    known = [f.name for f in fields(Label)]
    if unknown := [key for key in tree if key not in known]:
        raise ConfigError(f"{where}: unknown key {shown(unknown[0])}; allowed are {', '.join(known)}")
    name = tree.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not 0 < _encoded_length(name) <= _LONGEST_NAME:
        raise ConfigError(f"{where}: name must be text that can be used as a file name, got {shown(name)}")
    label: dict[str, Any] = {"name": name}
    if tree.get("color") is not None:
        label["color"] = _checked_color(tree["color"], f"{where} ({name})")
    aliases = tree.get("aliases") or ()
    if not isinstance(aliases, list | tuple) or not all(isinstance(a, str) and _encoded_length(a) for a in aliases):
        raise ConfigError(f"{where} ({name}): aliases must be a list of names, got {shown(aliases)}")
    label["aliases"] = tuple(aliases)
    if tree.get("roi_name") is not None:
        roi_name = tree["roi_name"]
        if not isinstance(roi_name, str) or not 0 < len(roi_name) <= 64 or not _encoded_length(roi_name):
            raise ConfigError(f"{where} ({name}): roi_name must have 1 to 64 characters, got {shown(roi_name)}")
        label["roi_name"] = tree["roi_name"]
    if (code := tree.get("code")) is not None:
        parts = [f.name for f in fields(Code)]
        if not isinstance(code, dict) or set(code) != set(parts) or not all(map(_is_code_part, code.values())):
            raise ConfigError(f"{where} ({name}): code must have {', '.join(parts)}, got {shown(code)}")
        label["code"] = Code(**{part: str(code[part]) for part in parts})
    return label


def _checked_color(color: Any, where: str) -> tuple[int, int, int]:
    if isinstance(color, str) and _HEX_COLOR.fullmatch(color):
        return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]
    if isinstance(color, list | tuple) and len(color) == 3 and all(type(c) is int and 0 <= c <= 255 for c in color):
        return tuple(color)
    raise ConfigError(f'{where}: color must be "#rrggbb" or three numbers from 0 to 255, got {shown(color)}')


def _kind(tree: Any) -> str:
    return "nothing" if tree is None else f"{type(tree).__name__} {shown(tree)}"


def _encoded_length(text: str) -> int:
    """Return the length in UTF-8, or 0 if the text cannot be encoded."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _is_code_part(part: Any) -> bool:
    # YAML reads an unquoted code value as a number.
    return (isinstance(part, str) and _encoded_length(part) > 0) or type(part) is int


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# The competition's labels, in the order of its sample submission. Bowel_Large and Bowel_Small are the AAPM TG-263
# names, colon and small_bowel the TotalSegmentator names.
UWMGI = LabelSet.from_tree(
    [
        {
            "name": "large_bowel",
            "color": "#e69f00",
            "roi_name": "Bowel_Large",
            "aliases": ["Bowel_Large", "colon", "large intestine", "intestine_large"],
            "code": {"value": "14742008", "scheme": "SCT", "meaning": "Large intestine"},
        },
        {
            "name": "small_bowel",
            "color": "#56b4e9",
            "roi_name": "Bowel_Small",
            "aliases": ["Bowel_Small", "small intestine", "intestine_small"],
            "code": {"value": "30315005", "scheme": "SCT", "meaning": "Small intestine"},
        },
        {
            "name": "stomach",
            "color": "#00d696",
            "roi_name": "Stomach",
            "code": {"value": "69695003", "scheme": "SCT", "meaning": "Stomach"},
        },
    ]
)
PRESETS = {"uwmgi": UWMGI}
