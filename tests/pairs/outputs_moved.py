"""Heads whose outputs come in another container or order: equal places are not equal meanings."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(DIM)(x))
        mean = nn.Dense(DIM, name="mean")(h)
        logvar = nn.Dense(DIM, name="logvar")(h)
        return mean, logvar


class Heads(nnx.Module):
    def __init__(self, rngs):
        self.trunk = nnx.Linear(DIM, DIM, rngs=rngs)
        self.mean_head = nnx.Linear(DIM, DIM, rngs=rngs)
        self.logvar_head = nnx.Linear(DIM, DIM, rngs=rngs)

    def both(self, x):
        h = nnx.relu(self.trunk(x))
        return self.mean_head(h), self.logvar_head(h)


class AsDict(Heads):
    """A dict's leaves come sorted by key."""

    def __call__(self, x):
        mean, logvar = self.both(x)
        return {"mean": mean, "logvar": logvar}


class Posterior(NamedTuple):
    logvar: Any
    mean: Any


class AsTuple(Heads):
    """The fields are declared in another order."""

    def __call__(self, x):
        mean, logvar = self.both(x)
        return Posterior(mean=mean, logvar=logvar)


class Swapped(Heads):
    def __call__(self, x):
        return self.both(x)[::-1]


def truth(v):
    p = v["params"]
    return slots({"trunk": p["Dense_0"], "mean_head": p["mean"], "logvar_head": p["logvar"]})


def by_place(v):
    """In two tuples equal places mean equal things, whatever the layers are called."""
    p = v["params"]
    return slots({"trunk": p["Dense_0"], "mean_head": p["logvar"], "logvar_head": p["mean"]})


class Matcher(nn.Module):
    @nn.compact
    def __call__(self, query, document):
        q = nn.tanh(nn.Dense(DIM, name="query_tower")(query))
        d = nn.tanh(nn.Dense(DIM, name="document_tower")(document))
        return nn.Dense(DIM, name="score")(q - d)


class Turned(nnx.Module):
    """Takes the same two inputs, the other one first."""

    def __init__(self, rngs):
        self.embed_document = nnx.Linear(DIM, DIM, rngs=rngs)
        self.embed_query = nnx.Linear(DIM, DIM, rngs=rngs)
        self.compare = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, document, query):
        q, d = nnx.tanh(self.embed_query(query)), nnx.tanh(self.embed_document(document))
        return self.compare(q - d)


def matcher(v):
    p = v["params"]
    return slots(
        {
            "embed_query": p["query_tower"],
            "embed_document": p["document_tower"],
            "compare": p["score"],
        }
    )


HARD = "which output is which, only people know"
PAIRS = [
    Pair(
        "inputs-turned",
        Matcher,
        lambda: Turned(nnx.Rngs(0)),
        (sample(3, DIM), sample(3, DIM, seed=1)),
        matcher,
        tolerance=100.0,
        hard="the same arguments in another order; only their names tell",
    ),
    *(
        Pair(
            f"outputs-{name}",
            Encoder,
            lambda model=model: model(nnx.Rngs(0)),
            (sample(3, DIM),),
            truth,
            tolerance=100.0,
            hard=HARD,
        )
        for name, model in (("as-dict", AsDict), ("as-tuple", AsTuple))
    ),
    Pair(
        "outputs-swapped",
        Encoder,
        lambda: Swapped(nnx.Rngs(0)),
        (sample(3, DIM),),
        by_place,
        hard=HARD,
    ),
]
