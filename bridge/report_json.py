"""What ``inspect --json`` says: the same as the text, complete, and stable.

Keys may be added; those that are here stay (the README lists them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge._leaf_words import Reason, dtype_name, storage_word
from bridge.report_inspect import losses, unreadable_count

if TYPE_CHECKING:
    from bridge.roles import Group, Roles
    from legacy.checkpoint import Checkpoint, Run, Skipped
    from legacy.leaves import Leaf, LeafTable

__all__ = ["checkpoint_json", "leaf_json", "run_json"]


def checkpoint_json(checkpoint: Checkpoint, roles: Roles | None) -> dict[str, Any]:
    """The same as plain JSON values, complete.

    Args:
        checkpoint: opened.
        roles: of ``checkpoint.leaves``.

    Returns:
        ``path``, ``format``, ``step``, ``signature``, ``leaves`` and ``nbytes`` of all tree
        items, ``items`` with every leaf, ``roles`` and ``totals`` by role, ``problems`` and
        ``notes`` with their leaves, ``metadata`` and ``skipped``.
    """
    leaves = checkpoint.leaves
    role_of = {p: g.role for g in roles.groups for p in g.full()} if roles else {}
    alone = len(checkpoint.tree_items) == 1
    problems, notes = losses(checkpoint)
    return {
        "path": str(checkpoint.path),
        "format": {
            "name": checkpoint.format.name,
            "layout": checkpoint.format.layout,
            "era": checkpoint.format.era,
            "evidence": list(checkpoint.format.evidence),
        },
        "step": checkpoint.step,
        "signature": leaves.signature(),
        "leaves": len(leaves),
        "nbytes": leaves.nbytes,
        "unreadable": unreadable_count(checkpoint),
        "items": {
            name: {
                "json": table.json_file is not None,
                "nbytes": table.nbytes,
                "leaves": [
                    leaf_json(leaf, role_of.get(path if alone else (name, *path)))
                    for path, leaf in table.items()
                ],
            }
            for name, table in checkpoint.items.items()
        },
        "roles": [_group_json(g, leaves) for g in roles.groups] if roles else [],
        "totals": {
            role: {"leaves": n, "nbytes": nbytes}
            for role, (n, nbytes) in (roles.totals(leaves) if roles else {}).items()
        },
        "problems": [_reason_json(reason) for reason in problems],
        "notes": [_reason_json(reason) for reason in notes],
        "metadata": dict(checkpoint.metadata),
        "skipped": [_skipped_json(s) for s in checkpoint.skipped],
    }


def leaf_json(leaf: Leaf, role: str | None = None) -> dict[str, Any]:
    """A leaf as plain JSON values, without its value."""
    return {
        "path": list(leaf.path),
        "kind": leaf.kind,
        "shape": list(leaf.shape),
        "dtype": dtype_name(leaf.dtype),
        "nbytes": leaf.nbytes,
        "role": role,
        "storage": storage_word(leaf),
        "chunks": None if leaf.chunks is None else list(leaf.chunks),
        "container": leaf.container,
        "key_impl": leaf.key_impl,
        "notes": list(leaf.notes),
        "problem": leaf.problem,
    }


def _reason_json(reason: Reason) -> dict[str, Any]:
    return {"text": reason.text, "leaves": len(reason.paths), "first": list(reason.paths[0])}


def _group_json(group: Group, leaves: LeafTable) -> dict[str, Any]:
    return {
        "role": group.role,
        "collection": group.collection,
        "prefix": list(group.prefix),
        "leaves": len(group.paths),
        "nbytes": sum(leaves[p].nbytes for p in group.full()),
    }


def run_json(run: Run) -> dict[str, Any]:
    """A run as plain JSON values."""
    return {
        "path": str(run.path),
        "kind": run.kind,
        "steps": [{"step": s.step, "path": str(s.path)} for s in run.steps],
        "skipped": [_skipped_json(s) for s in run.skipped],
    }


def _skipped_json(entry: Skipped) -> dict[str, str]:
    return {"path": str(entry.path), "reason": entry.reason}
