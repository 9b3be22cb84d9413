"""Plans, verdicts and differences as text and as JSON.

Everything here is a function from a value to text: nothing is printed and nothing is read. Long
paths are wrapped, never cut, and only :func:`legacy.format_path` makes text of a path.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bridge._fold import Family, fold
from bridge._mirror import Mirror, mirrors
from bridge._plan import Plan, Step
from bridge._text import WIDTH, count, table, wrap
from bridge.report_diff import diff_json, diff_text
from bridge.report_inspect import checkpoint_text, run_text, runs_text
from bridge.report_json import checkpoint_json, run_json
from bridge.report_leaf import leaf_json, leaf_text
from bridge.report_problems import problem_lines
from bridge.report_tree import tree_lines
from legacy import format_path

if TYPE_CHECKING:
    pass

__all__ = [
    "checkpoint_json",
    "checkpoint_text",
    "diff_json",
    "diff_text",
    "leaf_json",
    "leaf_text",
    "plan_json",
    "plan_summary",
    "plan_text",
    "run_json",
    "run_text",
    "runs_text",
    "tree_lines",
]


def plan_summary(plan: Plan) -> str:
    """A plan in one line: how many leaves and slots ended where.

    >>> from bridge._plan import Plan
    >>> from bridge.target import Target
    >>> plan_summary(Plan((), (), (), (), Target(()), ""))
    '0 leaves: 0 mapped, 0 ignored; 0 slots: 0 filled, 0 initialised; 0 problems'
    """
    mapped = {p: s.why.partition(":")[0] for s in plan.steps for p in s.sources}
    reasons = Counter(mapped.values())
    why = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    ignored = {i.path for i in plan.ignored}
    stuck = {p for problem in plan.problems for p in problem.sources} - mapped.keys() - ignored
    filled = {ref for s in plan.steps for ref in s.slots}
    slots = len(plan.target.slots)
    leaves = len(mapped) + len(ignored) + len(stuck)
    open_slots = slots - len(filled) - len(plan.initialised)
    return (
        f"{count(leaves, 'leaf', 'leaves')}: {len(mapped)} mapped{f' ({why})' if why else ''}, "
        f"{len(ignored)} ignored{f', {len(stuck)} open' if stuck else ''}; "
        f"{count(slots, 'slot')}: {len(filled)} filled, {len(plan.initialised)} initialised"
        f"{f', {open_slots} open' if open_slots > 0 else ''}; "
        f"{count(len(plan.problems), 'problem')}"
    )


def plan_text(plan: Plan, width: int | None = None) -> str:
    """A plan as a table: what is mapped where and why, then all that is not mapped.

    Args:
        plan: any plan.
        width: of the terminal; default 80.

    Returns:
        Lines of text; rows that agree up to an index (``layers_{0…11}``) are one row.
    """
    width = width or WIDTH
    lines = wrap(plan_summary(plan), width, "", "  ")
    if plan.source:
        lines += wrap(f"source: {plan.source}", width, "", "  ")
    if plan.target.structural:
        said = "target: structural (no model was given: the source's own structure)"
        lines += wrap(said, width, "", "  ")
    if plan.steps:
        lines += ["", "mapped: source → slot, transforms, why"]
        lines += table(_fold_steps(plan.steps), width)
    lines += _ignored_lines(plan, width)
    lines += _initialised_lines(plan, width)
    for warning in plan.warnings:
        lines += ["", *wrap(f"warning: {warning}", width, "", "  ")]
    lines += problem_lines(plan.problems, width)
    return "\n".join(lines)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The stored form of a plan, with its digest and summary."""
    stored: dict[str, Any] = json.loads(plan.to_json())
    return {"ok": plan.ok, "digest": plan.digest(), "summary": plan_summary(plan), **stored}


def _fold_steps(steps: Sequence[Step]) -> list[tuple[str, str, str]]:
    """Rows of the table in the order of the steps, copies of the params in a row each."""
    order = {id(step): n for n, step in enumerate(steps)}
    copies = mirrors(steps)
    told = {id(step) for copy in copies for step in copy.steps}
    rows = [
        (
            (*step.sources, *(ref.path for ref in step.slots)),
            (len(step.sources), tuple(r.item for r in step.slots), step.transforms, step.why),
            step,
        )
        for step in steps
        if id(step) not in told
    ]
    shown = [(order[id(family.rows[0])], _family_row(family)) for family in fold(rows)]
    shown += [(order[id(copy.steps[0])], _copy_row(copy)) for copy in copies]
    return [row for _, row in sorted(shown, key=lambda pair: pair[0])]


def _family_row(family: Family[Step]) -> tuple[str, str, str]:
    step, n = family.rows[0], len(family.rows)
    note = "; ".join([*map(str, step.transforms), step.why]) + (f" ×{n}" if n > 1 else "")
    at = len(step.sources)
    slots = []
    for item, refs in itertools.groupby(step.slots, lambda ref: ref.item):
        to = at + len(list(refs))
        slots.append(f"{item}:{_sum(family.folded(slice(at, to)))}")
        at = to
    return _sum(family.folded(slice(len(step.sources)))), " + ".join(slots), note


def _sum(texts: Sequence[str]) -> str:
    """Paths joined by ``+``; a later one has ``…`` for what it begins with as the first does."""
    said = list(texts[:1])
    for text in texts[1:]:
        first, parts = texts[0].split("/"), text.split("/")
        # a quoted name may have a slash of its own
        plain = '"' not in texts[0] + text
        alike = (a == b for a, b in zip(first, parts[:-1], strict=False))
        n = sum(1 for _ in itertools.takewhile(bool, alike)) if plain else 0
        said.append("/".join(["…", *parts[n:]]) if n else text)
    return " + ".join(said)


def _copy_row(copy: Mirror) -> tuple[str, str, str]:
    like = f"as {format_path(copy.original)} ×{len(copy.steps)}; {', '.join(copy.why)}"
    slot = f"{format_path(copy.slot)}/…" if copy.slot else "…"
    return f"{format_path(copy.source)}/…", f"{copy.item}:{slot}", like


def _ignored_lines(plan: Plan, width: int) -> Iterator[str]:
    if not plan.ignored:
        return
    yield ""
    yield f"ignored: {count(len(plan.ignored), 'leaf', 'leaves')}"
    rows = [((i.path,), i.rule, i) for i in plan.ignored]
    yield from table(((f.paths[0], "", _times(f.rows[0].rule, f.rows)) for f in fold(rows)), width)


def _initialised_lines(plan: Plan, width: int) -> Iterator[str]:
    if not plan.initialised:
        return
    yield ""
    yield f"initialised: {count(len(plan.initialised), 'slot')}"
    rows = [((i.slot.path,), (i.slot.item, i.how, i.rule), i) for i in plan.initialised]
    shown = []
    for family in fold(rows):
        first = family.rows[0]
        note = _times(f"{first.how}; {first.rule}", family.rows)
        shown.append((f"{first.slot.item}:{family.paths[0]}", "", note))
    yield from table(shown, width)


def _times(text: str, rows: Sequence[Any]) -> str:
    return f"{text} ×{len(rows)}" if len(rows) > 1 else text
