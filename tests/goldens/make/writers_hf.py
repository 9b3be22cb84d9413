"""Flax models of Hugging Face transformers, as their `save_pretrained` writes them.

Needs an environment with an old `transformers` (4.13 - 4.5x had Flax models) beside the era's flax;
without it there are no such goldens. See `matrix.py` for what a writer is.
"""
from importlib import util


def hf_pretrained(folder, content):
    """`FlaxBertModel.save_pretrained`: `flax_model.msgpack` beside `config.json`."""
    bert_model().save_pretrained(str(folder / "model"), params=content.tree)
    return {"checkpoint": "model"}


def hf_sharded(folder, content):
    """The same with a small `max_shard_size`: several files and an index."""
    bert_model().save_pretrained(str(folder / "model"), params=content.tree, max_shard_size="2KB")
    return {"checkpoint": "model"}


def hf_sharded_tiny(folder, content):
    """A limit that is below every parameter: one file each, and an empty first one."""
    bert_model().save_pretrained(str(folder / "model"), params=content.tree, max_shard_size=10)
    return {"checkpoint": "model/flax_model.msgpack.index.json"}


def bert_model():
    from transformers import BertConfig, FlaxBertModel
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=12, max_position_embeddings=9)
    return FlaxBertModel(config, _do_init=False)


WRITERS = {function.__name__: function for function in (
    hf_pretrained, hf_sharded, hf_sharded_tiny)}


def cells(contents):
    """The model of the same name only."""
    if util.find_spec("transformers") is not None:
        for name in WRITERS:
            yield "bert", name
