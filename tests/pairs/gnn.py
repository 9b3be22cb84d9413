"""Graph network: edge, node and global updates of one shape each, several rounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6
ROUNDS = 3


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(DIM)(x))
        return nn.LayerNorm()(nn.Dense(DIM)(x))


class GraphNet(nn.Module):
    @nn.compact
    def __call__(self, nodes, edges, senders, receivers):
        nodes = nn.Dense(DIM, name="embed_nodes")(nodes)
        edges = nn.Dense(DIM, name="embed_edges")(edges)
        for step in range(ROUNDS):
            sent, received = nodes[senders], nodes[receivers]
            edges = edges + MLP(name=f"edge_{step}")(sent * received + edges)
            gathered = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
            nodes = nodes + MLP(name=f"node_{step}")(nodes + gathered)
        return nn.Dense(DIM, name="readout")(jnp.mean(nodes, 0))


class Update(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(DIM, rngs=rngs)
        self.last = nnx.Linear(DIM, DIM, rngs=rngs)
        self.first = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.last(nnx.relu(self.first(x))))


class MessagePassing(nnx.Module):
    def __init__(self, rngs):
        self.phi = Update(rngs)
        self.gamma = Update(rngs)

    def __call__(self, nodes, edges, senders, receivers):
        edges = edges + self.phi(nodes[senders] * nodes[receivers] + edges)
        gathered = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
        return nodes + self.gamma(nodes + gathered), edges


class NNXGraphNet(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(DIM, DIM, rngs=rngs)
        self.processor = nnx.List([MessagePassing(rngs) for _ in range(ROUNDS)])
        self.node_encoder = nnx.Linear(DIM, DIM, rngs=rngs)
        self.edge_encoder = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, nodes, edges, senders, receivers):
        nodes, edges = self.node_encoder(nodes), self.edge_encoder(edges)
        for layer in self.processor:
            nodes, edges = layer(nodes, edges, senders, receivers)
        return self.out(jnp.mean(nodes, 0))


def mlp(old):
    return {"first": old["Dense_0"], "last": old["Dense_1"], "norm": old["LayerNorm_0"]}


def truth(v):
    p = v["params"]
    places = {
        "node_encoder": p["embed_nodes"],
        "edge_encoder": p["embed_edges"],
        "out": p["readout"],
    }
    for i in range(ROUNDS):
        places[f"processor/{i}/phi"] = mlp(p[f"edge_{i}"])
        places[f"processor/{i}/gamma"] = mlp(p[f"node_{i}"])
    return slots(places)


INPUTS = (
    sample(5, DIM),
    sample(7, DIM, seed=1),
    np.array([0, 1, 2, 3, 4, 0, 2], np.int32),
    np.array([1, 2, 3, 4, 0, 2, 0], np.int32),
)
PAIRS = [
    Pair("gnn", GraphNet, lambda: NNXGraphNet(nnx.Rngs(0)), INPUTS, truth, tolerance=1e-5),
]
