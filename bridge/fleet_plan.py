"""Groups of checkpoints that share a plan, and the plan of each.

Checkpoints of one structure that belong to one entry of ``fleet.toml`` are one group. A plan is
made once for a group, from its first checkpoint, and stored: the workers know nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import legacy
from bridge._plan import Plan, Problem, read_plan
from bridge.errors import PlanMismatch
from bridge.fleet_config import Config, Entry
from bridge.fleet_find import Source
from legacy import LeafTable

__all__ = ["STRUCTURAL", "Group", "Looked", "group_all", "memory_of", "plan_group", "unused"]

STRUCTURAL = Entry("structural (the source's own paths)")
_LEFT = 'no entry of fleet.toml covers it, and [default] unmatched is "leave"'

_BASE = 160 << 20
_PLAIN = (6, 256 << 20)
_COMPUTED = 6


@dataclass(frozen=True, slots=True)
class Looked:
    """A source that was looked into.

    Attributes:
        source: where it is.
        fingerprint: of its files.
        disk_bytes: of its files.
        signature: of its structure; empty when it could not be opened.
        nbytes: bytes of its arrays.
        format: in words.
        kind: the type of the error that opening it gave; empty when all is well.
        error: that error.
    """

    source: Source
    fingerprint: str = ""
    disk_bytes: int = 0
    signature: str = ""
    nbytes: int = 0
    format: str = ""
    kind: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Checkpoints of one structure and one entry.

    Attributes:
        entry: how they are planned.
        signature: of their structure.
        members: all of them.
        plan: None when it could not be made.
        digest: of the stored plan.
        memory: bytes that converting one of them may need.
        kind: the type of what is wrong; empty when they can be converted.
        problem: why none of them is converted.
        problems: the same as data, when it is the plan that has problems.
    """

    entry: Entry
    signature: str
    members: tuple[Looked, ...]
    plan: Plan | None = None
    digest: str = ""
    memory: int = 0
    kind: str = ""
    problem: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def runs(self) -> int:
        """How many runs its members belong to."""
        return len({m.source.run for m in self.members})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(m.nbytes for m in self.members)

    @property
    def skipped(self) -> bool:
        """Whether they are left on purpose."""
        return self.kind == "skipped"


def group_all(looked: Iterable[Looked], config: Config) -> list[Group]:
    """Put everything that could be opened into groups.

    Args:
        looked: what was found.
        config: the entries.

    Returns:
        Groups without plans, in the order of their first members.
    """
    members: dict[tuple[str, str], list[Looked]] = {}
    entries: dict[str, Entry] = {}
    for one in looked:
        if one.kind:
            continue
        entry = config.entry_of(one.source.run, one.signature)
        if entry is None:
            entry = STRUCTURAL if config.structural else Entry("in no group", skip=_LEFT)
        entries[entry.name] = entry
        members.setdefault((entry.name, one.signature), []).append(one)
    return [
        Group(entries[name], signature, tuple(group))
        for (name, signature), group in members.items()
    ]


def unused(config: Config, looked: Sequence[Looked]) -> list[str]:
    """The entries that cover nothing: a misspelt glob would leave its runs to the next entry."""
    used = {id(config.entry_of(one.source.run, one.signature)) for one in looked if not one.kind}
    # what could not be opened has no signature, so its entry is known by its path alone
    used |= {
        id(e) for one in looked if one.kind for e in config.entries if e.covers(one.source.run, "")
    }
    return [entry.name for entry in config.entries if id(entry) not in used]


def plan_group(group: Group) -> Group:
    """Make the plan of a group.

    Args:
        group: a group without a plan.

    Returns:
        The same with its plan, or with what is wrong.
    """
    if group.entry.skip:
        return replace(group, kind="skipped", problem=group.entry.skip)
    try:
        checkpoint = _first(group)
        plan = _plan(group, checkpoint)
        digest = plan.digest()
        memory = memory_of(plan, checkpoint.leaves)
    except Exception as error:  # noqa: BLE001 - one bad group, or model, never ends the batch
        problem = str(error) or type(error).__name__
        found = getattr(error, "problems", ())
        problems = tuple(p for p in found if isinstance(p, Problem))
        return replace(group, kind=type(error).__name__, problem=problem, problems=problems)
    return replace(group, plan=plan, digest=digest, memory=memory)


def _first(group: Group) -> legacy.Checkpoint:
    """The first member that is whole: a leaf that cannot be read would spoil the plan of all."""
    damaged: legacy.Checkpoint | None = None
    for one in group.members:
        try:
            checkpoint = legacy.open(one.source.path)
        except legacy.LegacyError:
            continue  # it vanished after it was looked at: converting it will say so
        if all(leaf.problem is None for leaf in checkpoint.leaves.values()):
            return checkpoint
        damaged = damaged or checkpoint
    return damaged or legacy.open(group.members[0].source.path)


def _plan(group: Group, checkpoint: legacy.Checkpoint) -> Plan:
    stored = group.entry.plan
    if stored is not None:
        plan = stored if isinstance(stored, Plan) else read_plan(stored)
        if plan.signature != group.signature:
            raise PlanMismatch(
                f"the stored plan is for the structure {plan.signature[:12]}…, this is "
                f"{group.signature[:12]}…. Make a plan for {checkpoint.path}, or give these runs "
                "an entry of their own in fleet.toml."
            )
        return plan.require_ok()
    from bridge import planning  # noqa: PLC0415 - only where something is planned

    plan = planning.plan(checkpoint, **group.entry.keywords).require_ok()
    # the digest must not depend on which member was the first
    return replace(plan, source=f"structure {group.signature[:12]}")


def memory_of(plan: Plan, leaves: LeafTable) -> int:
    """Bytes that a worker may hold while it carries out a plan.

    Arrays that are only moved or written go by in pieces; those that are computed are held whole,
    several times: the sources, the results, what is being compressed, and both sides again when
    they are compared.

    Args:
        plan: without problems.
        leaves: of one source of its structure.
    """
    sizes = {True: 0, False: 0}
    for step in plan.steps:
        held = sum(leaves[path].nbytes for path in step.sources)
        if step.transforms:
            held *= 2  # the results
        sizes[bool(step.transforms)] = max(sizes[bool(step.transforms)], held)
    return _BASE + min(_PLAIN[0] * sizes[False], _PLAIN[1]) + _COMPUTED * sizes[True]
