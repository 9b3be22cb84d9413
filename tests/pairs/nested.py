"""Plain nets: nested calls, many auto-numbered layers, equal names that mean something else."""

from __future__ import annotations

from flax import linen as nn
from flax import nnx

from .pair import Pair, sample, slots

DIM = 6


class OneLine(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(DIM)(nn.relu(nn.Dense(DIM)(nn.tanh(nn.Dense(DIM)(x)))))


class MLP(nnx.Module):
    def __init__(self, rngs):
        self.linear1 = nnx.Linear(DIM, DIM, rngs=rngs)
        self.linear2 = nnx.Linear(DIM, DIM, rngs=rngs)
        self.linear3 = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.linear3(nnx.relu(self.linear2(nnx.tanh(self.linear1(x)))))


def one_line(v):
    p = v["params"]
    return slots({f"linear{3 - i}": p[f"Dense_{i}"] for i in range(3)})


class Tower(nn.Module):
    """Fourteen layers: `Dense_10` is stored before `Dense_2`."""

    @nn.compact
    def __call__(self, x):
        for _ in range(14):
            x = x + nn.tanh(nn.Dense(DIM)(x))
        return x


class Reversed(nnx.Module):
    """Built from the last layer to the first, as decoders often are."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(DIM, DIM, rngs=rngs) for _ in range(14)])

    def __call__(self, x):
        for layer in reversed(self.layers):
            x = x + nnx.tanh(layer(x))
        return x


class Forward(nnx.Module):
    """The list also holds its activations, so that indices are skipped."""

    def __init__(self, rngs):
        self.net = nnx.List([])
        for _ in range(14):
            self.net.append(nnx.Linear(DIM, DIM, rngs=rngs))
            self.net.append(nnx.tanh)

    def __call__(self, x):
        for linear, activation in zip(self.net[::2], self.net[1::2], strict=True):
            x = x + activation(linear(x))
        return x


def forward(v):
    return slots({f"net/{2 * i}": v["params"][f"Dense_{i}"] for i in range(14)})


def backward(v):
    return slots({f"layers/{13 - i}": v["params"][f"Dense_{i}"] for i in range(14)})


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        gate = nn.sigmoid(nn.Dense(DIM, name="gate")(x))
        up = nn.Dense(DIM, name="up")(x)
        return nn.Dense(DIM, name="down")(gate * up)


class Decoy(nnx.Module):
    """The very names of the Linen model, with `up` and `down` the other way round."""

    def __init__(self, rngs):
        self.gate = nnx.Linear(DIM, DIM, rngs=rngs)
        self.up = nnx.Linear(DIM, DIM, rngs=rngs)
        self.down = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.up(nnx.sigmoid(self.gate(x)) * self.down(x))


def decoy(v):
    p = v["params"]
    return slots({"gate": p["gate"], "up": p["down"], "down": p["up"]})


class Towers(nn.Module):
    """Two towers whose outputs are added: nothing tells them apart."""

    @nn.compact
    def __call__(self, x):
        left = nn.Dense(DIM, name="left_out")(nn.relu(nn.Dense(DIM, name="left_in")(x)))
        right = nn.Dense(DIM, name="right_out")(nn.relu(nn.Dense(DIM, name="right_in")(x)))
        return nn.Dense(DIM, name="top")(left + right)


class Branch(nnx.Module):
    def __init__(self, rngs):
        self.second = nnx.Linear(DIM, DIM, rngs=rngs)
        self.first = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


class NNXTowers(nnx.Module):
    def __init__(self, rngs):
        self.branches = nnx.List([Branch(rngs), Branch(rngs)])
        self.head = nnx.Linear(DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.head(self.branches[0](x) + self.branches[1](x))


def towers(v):
    p = v["params"]
    places = {"head": p["top"]}
    for i, side in enumerate(("left", "right")):
        places[f"branches/{i}/first"] = p[f"{side}_in"]
        places[f"branches/{i}/second"] = p[f"{side}_out"]
    return slots(places)


def mirrored(v):
    other = {"left": "right", "right": "left"}
    params = v["params"]
    swapped = {}
    for name in params:
        side, _, end = name.partition("_")
        swapped[name] = params[f"{other[side]}_{end}"] if side in other else params[name]
    return {**v, "params": swapped}


X = (sample(3, DIM),)
PAIRS = [
    Pair("one-line", OneLine, lambda: MLP(nnx.Rngs(0)), X, one_line),
    Pair("mlp14-skipping", Tower, lambda: Forward(nnx.Rngs(0)), X, forward),
    Pair("mlp14-reversed", Tower, lambda: Reversed(nnx.Rngs(0)), X, backward),
    Pair("decoy", Named, lambda: Decoy(nnx.Rngs(0)), X, decoy, same_paths=True),
    Pair(
        "towers",
        Towers,
        lambda: NNXTowers(nnx.Rngs(0)),
        X,
        towers,
        symmetries=(mirrored,),
        tolerance=1e-5,
    ),
]
