"""Write a plan as an ordinary config file, with a comment on each choice."""

import textwrap
from typing import Any

import yaml

from gitseg_tf.planning.rules import Plan

_WIDTH = 118
_COMMENT_AT = 44


def plan_text(plan: Plan, name: str = "plan", fold: int | None = 0) -> str:
    """Format a plan as YAML that `load_config` reads.

    Args:
        plan: from `decide`.
        name: name of the experiment.
        fold: the held-out fold.

    Returns:
        The text, the same for the same plan.
    """
    prediction, (minutes, memory) = plan.prediction, plan.limits
    lines = [f"# A plan for {minutes:g} minutes of training and {memory:.3g} GiB of memory, made by gitseg plan."]
    lines += _paragraph(
        f"Expected: {prediction.training_minutes:.3g} minutes of training, of which the start takes "
        f"{prediction.start_minutes:.2g}; then about {prediction.scoring_minutes:.2g} minutes for scores and export; "
        f"at most {prediction.peak_gib:.2g} GiB of memory."
    )
    for title, items in (
        ("Data", plan.facts),
        ("Measured on this machine", plan.measured),
        ("Not tried", plan.not_tried),
    ):
        lines += ["#", f"# {title}:"]
        for item in items:
            lines += _paragraph(item, "# - ", "#   ")
    lines += [f"name: {name}"]
    tree: dict[str, Any] = {
        "data": {"fold": (fold, "held out for validation" if fold is not None else "none held out")}
    }
    for choice in plan.choices:
        *parents, last = choice.path
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = (choice.value, choice.reason)
    lines += _section(tree, 0)
    lines += ["provenance:", f"  plan: {{minutes: {prediction.training_minutes:.4g}}}  # expected, to compare with"]
    return "\n".join(lines) + "\n"


def _section(tree: dict[str, Any], depth: int) -> list[str]:
    lines = []
    for key, value in tree.items():
        indent = "  " * depth
        if isinstance(value, dict):
            lines += [f"{indent}{_scalar(key)}:", *_section(value, depth + 1)]
            continue
        setting, reason = value
        line = f"{indent}{_scalar(key)}: {_scalar(setting)}"
        if max(len(line), _COMMENT_AT - 2) + len("  # ") + len(reason) > _WIDTH:
            lines += textwrap.wrap(
                reason, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
            )
            lines.append(line)
        else:
            lines.append(f"{line:<{_COMMENT_AT - 2}}  # {reason}")
    return lines


def _scalar(value: Any) -> str:
    """Format a value or a key on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("...\n").strip()


def _paragraph(text: str, first: str = "# ", following: str = "# ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False)
