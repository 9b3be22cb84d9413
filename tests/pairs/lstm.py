"""LSTM seq2seq with a bidirectional encoder: gates by themselves in Linen, fused in NNX."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .pair import Pair, cat, slots, tokens

DIM = 6
VOCAB = 8


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        forward = nn.RNN(nn.OptimizedLSTMCell(DIM))
        backward = nn.RNN(nn.OptimizedLSTMCell(DIM))
        x = nn.Bidirectional(forward, backward)(x)
        return nn.Dense(DIM, name="merge")(x)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x, context):
        x = jnp.concatenate([x, jnp.broadcast_to(context[:, None], x.shape)], -1)
        x = nn.Dense(DIM, name="mix")(x)
        x = nn.RNN(nn.OptimizedLSTMCell(DIM), name="rnn")(x)
        return nn.Dense(VOCAB, name="out")(x)


class Seq2Seq(nn.Module):
    def setup(self):
        self.embed_in = nn.Embed(VOCAB, DIM)
        self.embed_out = nn.Embed(VOCAB, DIM)
        self.encoder = Encoder()
        self.decoder = Decoder()

    def __call__(self, source, target):
        encoded = self.encoder(self.embed_in(source))
        return self.decoder(self.embed_out(target), jnp.mean(encoded, 1))


class BiLSTM(nnx.Module):
    def __init__(self, rngs):
        def rnn():
            return nnx.RNN(nnx.OptimizedLSTMCell(DIM, DIM, rngs=rngs), rngs=rngs)

        self.both = nnx.Bidirectional(rnn(), rnn(), rngs=rngs)
        self.linear = nnx.Linear(2 * DIM, DIM, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.both(x))


class Translator(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Dict(
            target=nnx.Embed(VOCAB, DIM, rngs=rngs), source=nnx.Embed(VOCAB, DIM, rngs=rngs)
        )
        self.reader = BiLSTM(rngs)
        self.join = nnx.Linear(2 * DIM, DIM, rngs=rngs)
        self.writer = nnx.RNN(nnx.OptimizedLSTMCell(DIM, DIM, rngs=rngs), rngs=rngs)
        self.vocabulary = nnx.Linear(DIM, VOCAB, rngs=rngs)

    def __call__(self, source, target):
        context = jnp.mean(self.reader(self.words["source"](source)), 1)
        x = self.words["target"](target)
        x = jnp.concatenate([x, jnp.broadcast_to(context[:, None], x.shape)], -1)
        return self.vocabulary(self.writer(self.join(x)))


class GateByGate(nnx.Module):
    """The same model with nnx.LSTMCell, which keeps the gates apart."""

    def __init__(self, rngs):
        def rnn():
            return nnx.RNN(nnx.LSTMCell(DIM, DIM, rngs=rngs), rngs=rngs)

        self.tok_src = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.tok_dst = nnx.Embed(VOCAB, DIM, rngs=rngs)
        self.left_to_right = rnn()
        self.right_to_left = nnx.RNN(
            nnx.LSTMCell(DIM, DIM, rngs=rngs), reverse=True, keep_order=True, rngs=rngs
        )
        self.mix_enc = nnx.Linear(2 * DIM, DIM, rngs=rngs)
        self.mix_dec = nnx.Linear(2 * DIM, DIM, rngs=rngs)
        self.decoder_rnn = rnn()
        self.readout = nnx.Linear(DIM, VOCAB, rngs=rngs)

    def __call__(self, source, target):
        x = self.tok_src(source)
        x = jnp.concatenate([self.left_to_right(x), self.right_to_left(x)], -1)
        context = jnp.mean(self.mix_enc(x), 1)
        x = self.tok_dst(target)
        x = jnp.concatenate([x, jnp.broadcast_to(context[:, None], x.shape)], -1)
        return self.readout(self.decoder_rnn(self.mix_dec(x)))


def fused(cell):
    return {
        "dense_i": cat([cell[f"i{g}"] for g in "ifgo"]),
        "dense_h": cat([cell[f"h{g}"] for g in "ifgo"]),
    }


def truth(v):
    p = v["params"]
    e, d = p["encoder"], p["decoder"]
    return slots(
        {
            "words/source": p["embed_in"],
            "words/target": p["embed_out"],
            "reader/both/forward_rnn/cell": fused(e["OptimizedLSTMCell_0"]),
            "reader/both/backward_rnn/cell": fused(e["OptimizedLSTMCell_1"]),
            "reader/linear": e["merge"],
            "join": d["mix"],
            "writer/cell": fused(d["OptimizedLSTMCell_0"]),
            "vocabulary": d["out"],
        }
    )


def renamed(cell):
    return {{"if": "if_"}.get(k, k): x for k, x in cell.items()}


def gate_truth(v):
    p = v["params"]
    e, d = p["encoder"], p["decoder"]
    return slots(
        {
            "tok_src": p["embed_in"],
            "tok_dst": p["embed_out"],
            "left_to_right/cell": renamed(e["OptimizedLSTMCell_0"]),
            "right_to_left/cell": renamed(e["OptimizedLSTMCell_1"]),
            "mix_enc": e["merge"],
            "mix_dec": d["mix"],
            "decoder_rnn/cell": renamed(d["OptimizedLSTMCell_0"]),
            "readout": d["out"],
        }
    )


INPUTS = (tokens(2, 5, vocab=VOCAB), tokens(2, 4, vocab=VOCAB, seed=1))
PAIRS = [
    Pair("lstm-fused", Seq2Seq, lambda: Translator(nnx.Rngs(0)), INPUTS, truth, tolerance=1e-5),
    Pair(
        "lstm-gates", Seq2Seq, lambda: GateByGate(nnx.Rngs(0)), INPUTS, gate_truth, tolerance=1e-5
    ),
]
