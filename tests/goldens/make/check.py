"""Reads every golden with today's flax and Orbax and compares it with its truth.

    python check.py GOLDENS

It needs the newest environment only, and shows that the checkpoints here are sound: what today's
libraries can read is bit-equal to the truth, and the CNN's parameters still give the recorded
logits in today's Linen. What they cannot read, or read differently, is printed and is the reason
the project exists.
"""
import json
import pathlib
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from contents import CNN
from truth import walk


def main():
    """Check every truth file below the folder on the command line."""
    failed = 0
    for truth_file in sorted(pathlib.Path(sys.argv[1]).absolute().glob("*/*/truth*.json")):
        truth = json.loads(truth_file.read_text(encoding="utf-8"))
        arrays = np.load(truth_file.with_suffix(".npz"))
        try:
            found, call = read(truth_file.parent, truth)
        except Exception as error:  # any failure of today's libraries is a finding
            text = f"UNREADABLE {type(error).__name__}: {str(error).splitlines()[0][:90]}"
        else:
            remarks = compare(truth["leaves"], arrays, found)
            if "logits" in arrays:
                remarks += forward(arrays, found)
            failed += any(remark.startswith("WRONG") for remark in remarks)
            text = f"{len(truth['leaves'])} leaves, {call}; " + ("; ".join(remarks) or "all equal")
        print(f"{truth['era']}/{truth_file.parent.name} step {truth['step']}: {text}")
    sys.exit(bool(failed))


def read(folder, truth):
    """The tree as {path: leaf}, and the name of the call that gave it."""
    step = folder / f"checkpoint_{truth['step']}"
    if step.is_file():
        tree = serialization.msgpack_restore(step.read_bytes())
        return dict(walk(undo_namedtuples(tree))), "msgpack_restore"
    if not step.exists():
        step = folder / "ckpt"
    if not step.exists():
        step = folder / "mgr" / str(truth["step"]) / truth["item"]
    checkpointer = ocp.PyTreeCheckpointer()
    try:
        return dict(walk(checkpointer.restore(step))), "restore()"
    except Exception as error:  # then ask for host arrays, which needs no sharding
        reason = str(error).splitlines()[0][:60]
        tree = checkpointer.metadata(step)
        tree = getattr(tree, "item_metadata", tree)
        tree = getattr(tree, "tree", tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(step, restore_args=as_numpy)
        return dict(walk(found)), f"restore(numpy) as restore() fails: {reason!r}"


def undo_namedtuples(node):
    """Turn flax <= 0.3.4's {name, fields, values} into a dict by field name."""
    if not isinstance(node, dict):
        return node
    if set(node) == {"name", "fields", "values"}:
        node = {node["fields"][i]: node["values"][i] for i in node["fields"]}
    return {key: undo_namedtuples(child) for key, child in node.items()}


def compare(leaves, arrays, found):
    """Every difference between the truth and what was found."""
    remarks, left = [], dict(found)
    for leaf in leaves:
        path = tuple(leaf["path"])
        if path not in left:
            remarks.append(f"WRONG no {path}")
            continue
        remark = difference(leaf, arrays, left.pop(path))
        remarks += [remark] if remark else []
    remarks += [f"WRONG too many {path}" for path in left]
    return [f"{remarks.count(remark)} x {remark}" if remarks.count(remark) > 1 else remark
            for remark in dict.fromkeys(remarks)]


def difference(leaf, arrays, value):
    """What is not as it was, or nothing."""
    path = ".".join(leaf["path"])
    if leaf["kind"] in ("none", "empty"):
        if value is None or (isinstance(value, (dict, list, tuple)) and not value):
            same = (leaf["kind"] == "none") == (value is None)
            return None if same else f"{leaf.get('container', 'None')} became {value!r}"
        return f"WRONG {path} {value!r}"
    if "value" in leaf:
        if type(value) is not type(leaf["value"]) and value == leaf["value"]:
            return f"{leaf['kind']} became {type(value).__name__}"
        return None if value == leaf["value"] else f"WRONG {path} {value!r}"
    want = arrays[leaf["data"]]
    if leaf["kind"] == "scalar" and isinstance(value, (int, float)) and value == want[()]:
        return None if isinstance(value, np.generic) else f"scalar became {type(value).__name__}"
    if leaf["kind"] == "key":
        impl, value = str(jax.random.key_impl(value)), jax.random.key_data(value)
        if impl != leaf["key_impl"]:
            return f"WRONG {path} impl {impl}"
    elif leaf["dtype"] == "bfloat16":
        want = want.view(ml_dtypes.bfloat16)
    got = np.asarray(value)
    same = got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()
    return None if same else f"WRONG {path} {got.dtype}{got.shape}"


def forward(arrays, found):
    """Run today's Linen on the parameters that were found."""
    remarks = []
    for collection, logits in (("params", "logits"), ("ema_params", "ema_logits")):
        variables = {"params": nest(found, collection), "batch_stats": nest(found, "batch_stats")}
        answer = CNN().apply(variables, arrays["inputs"], train=False)
        worst = float(np.abs(np.asarray(answer) - arrays[logits]).max())
        if worst > 1e-5:
            remarks.append(f"WRONG {logits} by {worst}")
    return remarks


def nest(found, top):
    """The subtree below `top` as nested dicts."""
    tree = {}
    for path, leaf in found.items():
        if path[0] == top:
            node = tree
            for name in path[1:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = leaf
    return tree


if __name__ == "__main__":
    main()
