"""Draws up a plan: the stages in their order.

User rules come first and claim what they name; then paths and unique pairings settle what they
can; what is shaped like params follows; what has no home in the model is carried; and what is
left is a problem. No array is read, but for a leaf that can only be dropped when it is zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge._plan import Plan
from bridge.across import pair_across
from bridge.carry import NOTHING, carry
from bridge.claims import apply_ignores, apply_inits, apply_maps, check_casts
from bridge.draft import Draft
from bridge.errors import BridgeError, TargetError
from bridge.feeds import At, at_paths, feeds
from bridge.followers import follow_copies, follow_optimizers
from bridge.leftovers import settle
from bridge.nnx_source import bring_forward
from bridge.optimizer import PER_TENSOR
from bridge.pairing import pair_feed
from bridge.proving import Given, prove
from bridge.rngs import checked_policy, settle_rngs
from bridge.roles import Role, find_roles
from bridge.rule_text import ignore_rules
from bridge.rules import Rules
from bridge.structural import structural_feeds, structural_slots
from bridge.target import Target
from bridge.work import Work
from legacy import Checkpoint, format_path
from legacy import open as open_checkpoint
from legacy.orbax_eras import INDEX_LOST, NOT_COMMITTED

__all__ = ["plan"]

_NNX_SOURCE = (
    "the source is an NNX state itself: its leaves go to the slots of their paths, and the types "
    "of Variables come from the target; what has no slot of its path is taken for what it would "
    "be in Linen"
)
_KEPT: tuple[tuple[Role, str], ...] = (("step", "keep"), ("rest", "keep"))
"""Roles that have no home in a model, and the rule by which they are carried."""


def plan(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    model: Any = None,
    tx: Any = None,
    linen: Any = None,
    sample_input: Any = None,
    methods: Any = None,
    allow_order: bool = False,
    rules: Any = None,
    transforms: Mapping[str, Any] | None = None,
    step: float | None = None,
    at: At = None,
    seed: int = 0,
    rngs: str = "keep",
) -> Plan:
    """Plan how an old checkpoint becomes an NNX checkpoint; no array is read.

    Args:
        path: a checkpoint file or folder, a run (then its last step), or an opened checkpoint.
        model: what to fill: a factory without arguments, an abstract or concrete ``nnx`` object,
            several of them by item name, or a :class:`~bridge.Target` (a stored target spec).
            None makes a structural target: collections become Variable types, paths stay.
        tx: the optax transformation of the optimizer, or several by model name.
        linen: the Linen module that wrote the checkpoint (or a function that makes it), or several
            by item name. Both models are then run with tied random values, or traced, and what
            that proves is taken (``fingerprint``, ``dataflow``). Needs ``sample_input``.
        sample_input: how both are called: an array, a tuple of arguments, a dict of keyword
            arguments, a :class:`~bridge.Probe`, a list of these; or any of it by item name.
            A ``jax.ShapeDtypeStruct`` stands for a random array.
        methods: names of further methods to call with the same input.
        allow_order: also write what only the order of numbered layers suggests (``order``).
        rules: user rules: a TOML file, :class:`~bridge.Rules`, or a list of rules.
        transforms: Orbax-style ``{regex: ocp.Transform(...)}``.
        step: which step of a run.
        at: which part of the checkpoint feeds an item: a path, or a path by item.
        seed: from which PRNG streams that no checkpoint holds are made.
        rngs: what becomes of PRNG keys: ``keep`` carries those of the checkpoint to ``extras`` and
            starts the model's random streams from ``seed``, ``reseed`` starts these from the key
            of the checkpoint, ``drop`` leaves keys behind.

    Returns:
        The plan. It may have problems; then nothing can be written by it.

    Raises:
        legacy.LegacyError: the checkpoint cannot be opened.
        TargetError: the model cannot be described.
        RuleError: the rules are not well formed.
        BridgeError: the Linen module cannot be called, or is not the one of the checkpoint.

    >>> plan("runs/exp1", model=lambda: CNN(rngs=nnx.Rngs(0)))  # doctest: +SKIP
    """
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(path, step=step)
    given = Rules.of(rules)
    if transforms:
        from bridge.orbax_transforms import from_orbax  # noqa: PLC0415 - rarely used

        given = Rules((*given.rules, *from_orbax(transforms).rules))
    target, objects = _target(model, tx)
    work = _work(checkpoint, target, given, at, seed)
    work.allow_order = allow_order
    work.rngs = checked_policy(rngs)
    work.nnx = "NNX state" in checkpoint.format.era
    running = _given(model, linen, sample_input, methods)
    _fill(work, given, running)
    made = _finished(work, checkpoint)
    if objects:
        from bridge.target_traps import target_warnings  # noqa: PLC0415 - loads jax

        traps = target_warnings(objects, made.steps)
        # the optimizer is known, so what it does tensor by tensor is said exactly
        told = (w for w in made.warnings if w != PER_TENSOR)
        made = replace(made, warnings=(*told, *traps))
    return made if running is None else _confirmed(made, work, running, model)


def _finished(work: Work, checkpoint: Checkpoint) -> Plan:
    """The plan, once every leaf and slot has its account."""
    draft, target = work.draft, work.target
    return Plan(
        steps=draft.finished_steps(),
        ignored=draft.finished_ignored(),
        initialised=tuple(draft.initialised.values()),
        problems=draft.finished_problems(),
        target=Target(
            tuple(draft.slots.values()),
            (*(target.empties if target else ()), *draft.empties),
            structural=target is None,
        ),
        signature=work.table.signature(),
        source=str(checkpoint.format),
        warnings=(
            *(feed.note for feed in work.feeds if feed.note),
            *work.warnings,
            *dict.fromkeys(draft.notes),
            *(e for e in checkpoint.format.evidence if e.startswith((INDEX_LOST, NOT_COMMITTED))),
            *((_NNX_SOURCE,) if work.nnx else ()),
        ),
    )


def _confirmed(made: Plan, work: Work, given: Given, model: Any) -> Plan:
    """The plan with what there is to know about how its models behave."""
    from bridge.confirming import confirm  # noqa: PLC0415 - loads jax

    try:
        told = confirm(
            made,
            work.table,
            model=model,
            linen=given.linen,
            sample_input=given.sample_input,
            methods=given.methods,
            proven=work.proven,
            uncompared=work.uncompared,
        )
    except Exception as error:  # noqa: BLE001 - it runs the user's code, and a plan stands without it
        told = (f"how the models behave could not be compared: {type(error).__name__}: {error}",)
    return replace(made, warnings=(*made.warnings, *told))


def _given(model: Any, linen: Any, sample_input: Any, methods: Any) -> Given | None:
    """What there is to run; None without a Linen module."""
    if linen is None:
        if sample_input is not None or methods is not None:
            raise BridgeError("sample_input= and methods= say how linen= is called; give it, too.")
        return None
    if model is None or isinstance(model, Target):
        raise BridgeError("linen= is compared with the NNX model; give model=, and no spec of it.")
    from bridge.items import live  # noqa: PLC0415 - loads jax

    return Given(linen, sample_input, methods, live(model))


def _refuse_unreadable(draft: Draft) -> None:
    """A leaf that cannot be read is a problem, unless the user leaves it behind by a rule."""
    for path, leaf in draft.table.items():
        if leaf.kind == "unreadable" and draft.open_source(path):
            draft.used.add(path)
            text = f"{format_path(path)} cannot be read: {leaf.problem}"
            draft.refuse("loss", text, [path], (), ignore_rules([path]))


def _target(model: Any, tx: Any) -> tuple[Target | None, Mapping[str, Any]]:
    """The target, and the abstract objects that it describes, where there are any."""
    if model is None:
        if tx is not None:
            raise TargetError("tx= was given without model=: an nnx.Optimizer needs its model.")
        return None, {}
    if isinstance(model, Target):
        if tx is not None:
            raise TargetError(
                "tx= was given with a target spec, which has the slots of its optimizer already. "
                "Leave tx away, or give the model's factory instead of the spec."
            )
        return model, {}
    from bridge._describe import described  # noqa: PLC0415 - loads jax, which a spec does not need
    from bridge.items import gather  # noqa: PLC0415 - likewise

    objects = gather(model, tx).objects
    return described(objects, model), objects


def _work(checkpoint: Checkpoint, target: Target | None, rules: Rules, at: At, seed: int) -> Work:
    """Lay out what there is."""
    table = checkpoint.leaves
    collections = {s.collection for s in target.slots} if target else ()
    roles = find_roles(table, collections, nnx="NNX state" in checkpoint.format.era)
    draft = Draft(table, target.slots if target else (), rules)
    if target is None:
        if at is not None:
            raise BridgeError("at= chooses what feeds an item of model=, which was not given.")
        return Work(draft, roles, None, {}, seed, structural_feeds(roles), {})
    paths = at_paths(at, target.items)
    found, undecided = feeds(table, roles, target, paths)
    return Work(draft, roles, target, paths, seed, found, undecided)


def _fill(work: Work, rules: Rules, given: Given | None) -> None:
    """All stages in their order: each takes what the ones before have left open."""
    draft = work.draft
    # empty leaves of optimizer states are kept for later: they say where it is masked
    optimizer = {p for g in work.roles.of("opt_state") for p in g.full()}
    for path, leaf in work.table.items():
        if leaf.kind in NOTHING and path not in optimizer:
            draft.ignore(path, "empty")
    apply_ignores(draft, rules, work.feeds)
    if work.target is None:
        structural_slots(draft, rules, work.feeds)
    apply_inits(draft, rules)
    apply_maps(draft, rules, work.feeds)
    _refuse_unreadable(draft)
    bring_forward(work)
    if given is not None:
        prove(work, given)
    for feed in work.feeds:
        pair_feed(work, feed)
    pair_across(work)
    work.record()
    optimizers = follow_optimizers(work)
    follow_copies(work)
    settle_rngs(work)
    for role, code in _KEPT:
        for group in work.roles.of(role):
            carry(draft, group.full(), code)
    settle(work, optimizers)
    check_casts(draft)
