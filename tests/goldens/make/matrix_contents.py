"""The trees of the golden matrix that need no model: parameters, bundles, and everything odd.

Each function gives a `Content`; `matrix_contents_states` has the trees that training makes. A
content that a release cannot even make raises, which is noted as such. All values are seeded, and
no two leaves are alike, so that leaves that were mixed up do not pass for right.

Runs on Python 3.8 - 3.12 and on every release of flax since 0.1.0.
"""
import collections
import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

CONTENTS = {}


@dataclasses.dataclass
class Content:
    """What is saved: the tree at each step (the last is the golden), and arrays for the truth.

    `wanted` is the tree that the truth tells of, where it is not the very object that is saved.
    """

    trees: dict
    arrays: dict = dataclasses.field(default_factory=dict)
    wanted: Any = None

    @property
    def step(self):
        """The last step."""
        return max(self.trees)

    @property
    def tree(self):
        """The tree at the last step."""
        return self.trees[self.step]

    @property
    def truth(self):
        """The tree that a reader must give."""
        return self.tree if self.wanted is None else self.wanted


def content(function):
    """Enter a function that gives a tree, or a `Content`, in the list."""
    def made():
        result = function()
        return result if isinstance(result, Content) else Content({3: result})
    made.__name__, made.__doc__ = function.__name__, function.__doc__
    CONTENTS[function.__name__] = made
    return made


class Values:
    """Arrays that differ from each other."""

    def __init__(self, seed):
        self.random = np.random.RandomState(seed)

    def numpy(self, dtype, *shape):
        """A numpy array of any dtype; floats include both signs, integers both ends."""
        dtype = np.dtype(dtype)
        if dtype.kind == "b":
            return np.asarray(self.random.rand(*shape) < 0.5)
        if dtype.kind in "iu":
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            whole = self.random.randint(0, 256, (*shape, dtype.itemsize)).astype(np.uint8)
            whole = whole.view(dtype.newbyteorder("=")).reshape(shape).astype(dtype)
            whole.reshape(-1)[:2] = [low, high][:whole.size]
            return whole
        if dtype.kind == "c":
            both = self.random.randn(2, *shape)
            return np.asarray(both[0] + 1j * both[1]).astype(dtype)
        return np.asarray(self.random.randn(*shape) * 3).astype(dtype)

    def __call__(self, *shape, dtype=np.float32):
        """A jax array."""
        return jnp.asarray(self.numpy(dtype, *shape))


def release():
    """The release of flax as a tuple of numbers."""
    from importlib import metadata
    return tuple(int(part) for part in metadata.version("flax").split(".")[:3])


def _dense(values, inputs, outputs, dtype=np.float32):
    return {"kernel": values(inputs, outputs, dtype=dtype), "bias": values(outputs, dtype=dtype)}


def mlp(values):
    """Two layers and an embedding, with the names Linen gives."""
    return {"Dense_0": _dense(values, 4, 5), "Dense_1": _dense(values, 5, 3),
            "Dense_10": _dense(values, 3, 2),
            "Embed_0": {"embedding": values(6, 4)},
            "LayerNorm_0": {"scale": values(5), "bias": jnp.zeros(5)}}


@content
def mlp_params():
    """Parameters as a plain dict."""
    return Content({step: mlp(Values(step)) for step in (1, 2, 3)})


@content
def mlp_frozen():
    """The same as a FrozenDict, the form in which Linen gave parameters until 0.7."""
    return flax.core.freeze({"params": mlp(Values(20))})


@content
def bare_array():
    """No tree at all: one array."""
    return Values(21).numpy(np.float32, 3, 4)


@content
def bundle():
    """A dict as people save it: parameters, a config, and leaves of many types."""
    values = Values(22)
    return {
        "model": {"params": mlp(values)},
        "config": {"name": "run-ü", "lr": 0.001, "layers": [16, 16], "flag": True, "off": False,
                   "none": None, "empty": {}, "warmup": 500, "text": ""},
        "key.with.dot": values.numpy(np.float32, 5),
        "bf16": values(7, dtype=jnp.bfloat16),
        "i8": values.numpy(np.int8, 3),
        "scalar": np.float32(2.5) if release() >= (0, 3) else 2.5,  # there were none before
        "zero_d": jnp.asarray(7, jnp.int32),
        "count": 12345,
        "rng": values(2, dtype=np.uint32),
    }


@content
def bundle_arrays():
    """A dict of arrays of several ranks, zeros and ones among them."""
    values = Values(23)
    return {
        "ranks": [values(), values(3), values(2, 3), values(2, 1, 3), values(1, 2, 3, 2)],
        "zeros": jnp.zeros((3, 2)), "ones": jnp.ones((2, 2)), "minus_zero": np.array([-0.0, 0.0]),
        "wide": values(1, 40), "tall": values(40, 1),
        "half": values(3, dtype=jnp.bfloat16), "ints": values(4, dtype=np.int32),
        "mask": values.numpy(bool, 5),
    }


@content
def python_scalars():
    """Python's own numbers, the extreme ones too."""
    return {"zero": 0, "neg": -7, "int32": 2**31 - 1, "int64": -2**63, "big": 2**40,
            "half": 0.5, "third": 1 / 3, "tiny": 5e-324, "huge": 1.7976931348623157e308,
            "neg_zero": -0.0, "inf": float("inf"), "ninf": float("-inf"), "nan": float("nan"),
            "yes": True, "no": False, "array": Values(24).numpy(np.float32, 2)}


@content
def odd_uint64():
    """The greatest number that msgpack can hold."""
    return {"max": 2**64 - 1, "array": Values(25).numpy(np.float32, 2)}


STANDARD = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
            "float16", "float32", "float64", "complex64", "complex128")


@content
def odd_dtypes():
    """All dtypes that numpy and jax share, as numpy arrays, 0-d and strided ones too."""
    values = Values(26)
    tree = {name: values.numpy(name, 2, 3) for name in STANDARD}
    tree["bfloat16"] = np.asarray(values(3, 2, dtype=jnp.bfloat16))
    tree["zero_d"] = {name: values.numpy(name) for name in ("float32", "int64", "bool")}
    tree["special"] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    tree["fortran"] = np.asfortranarray(values.numpy(np.float32, 3, 4))
    tree["strided"] = values.numpy(np.int32, 20)[1::3]
    tree["turned"] = values.numpy(np.float32, 3, 2).T
    return tree


@content
def odd_dtypes_jax():
    """The dtypes of jax without x64, as jax arrays."""
    values = Values(27)
    names = [n for n in STANDARD if not n.endswith(("64", "128"))] + ["complex64"]
    tree = {name: values(2, 2, dtype=name) for name in names}
    tree["bfloat16"] = values(2, 3, dtype=jnp.bfloat16)
    tree["zero_d"] = {"bfloat16": values(dtype=jnp.bfloat16), "uint8": values(dtype=np.uint8)}
    return tree


@content
def odd_scalars():
    """Numpy scalars of every dtype."""
    values = Values(28)
    tree = {name: np.dtype(name).type(values.numpy(name)) for name in STANDARD if name != "bool"}
    tree["bfloat16"] = np.asarray(values(1, dtype=jnp.bfloat16))[0]
    tree["beside"] = values(2)
    return tree


@content
def odd_float8():
    """The small floats of ml_dtypes, as far as this release knows them."""
    return _small(29, lambda name: name.startswith(("float8", "float6", "float4")))


@content
def odd_int4():
    """The small integers of ml_dtypes."""
    return _small(30, lambda name: name in ("int4", "uint4", "int2", "uint2"))


@content
def odd_small_zarr():
    """Every small float and integer that the zarr driver of this release stores."""
    return _stored(51, "zarr", {"dtype": "", "shape": [1], "chunks": [1]}, "dtype")


@content
def odd_small_zarr3():
    """The same for zarr3."""
    grid = {"name": "regular", "configuration": {"chunk_shape": [1]}}
    return _stored(52, "zarr3", {"shape": [1], "chunk_grid": grid}, "data_type")


def _stored(seed, driver, document, field):
    """Small types, as arrays of numpy and (where jax has the type) of jax."""
    import ml_dtypes
    import tensorstore
    values, tree = Values(seed), {"numpy": {}, "jax": {}}
    for name in sorted(dir(ml_dtypes)):
        if not name.startswith(("float8", "float6", "float4", "int4", "uint4", "int2", "uint2")):
            continue
        spec = {"driver": driver, "kvstore": "memory://", "create": True,
                "metadata": {**document, field: name}}
        try:
            tensorstore.open(spec).result()
        except (ValueError, NotImplementedError, RuntimeError):
            continue  # this release has no such type
        array = tree["numpy"][name] = _cast(values, getattr(ml_dtypes, name))
        try:
            tree["jax"][name] = jax.numpy.asarray(array)
        except (TypeError, ValueError, NotImplementedError):
            continue
    if not tree["numpy"]:
        raise NotImplementedError("tensorstore of this release stores none of them as " + driver)
    return {**{name: part for name, part in tree.items() if part}, "beside": values(2)}


def _small(seed, wanted):
    import ml_dtypes
    values = Values(seed)
    names = [name for name in dir(ml_dtypes) if wanted(name)]
    tree = {name: _cast(values, getattr(ml_dtypes, name)) for name in sorted(names)}
    if not tree:
        raise NotImplementedError("ml_dtypes of this release has none of them")
    return {**tree, "beside": values(2)}


def _cast(values, dtype):
    name = np.dtype(dtype).name
    if "int" in name:
        low, high = (0, 4) if name == "uint2" else (-2, 2) if name == "int2" else (
            (0, 16) if name[0] == "u" else (-8, 8))
        return np.arange(low, high).astype(dtype)
    return np.abs(values.numpy(np.float32, 2, 3)).astype(dtype)


@content
def odd_big_endian():
    """Arrays in the other byte order, which few formats tell."""
    values = Values(31)
    return {"f4": values.numpy(">f4", 3), "i2": values.numpy(">i2", 2, 2),
            "f8": values.numpy(">f8", 2), "c8": values.numpy(">c8", 2),
            "zero_d": values.numpy(">f4"), "little": values.numpy("<f4", 3)}


@content
def odd_numpy_only():
    """Dtypes that jax does not have: text, times, long doubles."""
    values = Values(32)
    return {"text": np.array(["ab", "ü", ""]), "bytes": np.array([b"ab", b"c"]),
            "longdouble": values.numpy(np.longdouble, 2),
            "days": np.array(["2020-01-01", "NaT"], "datetime64[D]"),
            "span": np.array([1, -5], "timedelta64[ms]"), "beside": values(2)}


@content
def odd_zero_size():
    """Arrays without values, which still have a shape and a dtype."""
    values = Values(33)
    return {"one": jnp.zeros((0,)), "two": jnp.zeros((3, 0)), "three": np.zeros((0, 2, 5), np.int8),
            "half": jnp.zeros((2, 0), jnp.bfloat16), "beside": values(2)}


@content
def odd_keys():
    """Names with spaces, letters of other scripts, digits, dots, and names of fields."""
    values = Values(34)
    return {"a b": values(2), "αβγ": values(3), "日本": values(1), "UP-er_9": values(1),
            "0": values(1), "10": values(2), "2": {"x": values(3)},
            "a.b": values(2), ".lead": values(1),
            "name": values(1), "fields": values(2), "values": values(1),
            "value": {"value": values(2)}, "params": {"params": {"params": values(1)}}}


@content
def odd_keys_wild():
    """Names that nobody should give."""
    values = Values(62)
    return {"01": values(2), "1": values(1), "trail.": values(2), "...": values(1),
            "quote\"s'": values(1), "new\nline": values(2), "x" * 80: values(1),
            "(0, 'a')": values(2), "*": values(3), "a:b?c": values(1), " ": values(2),
            "é": values(1), "e\u0301": values(2)}


@content
def odd_keys_digits():
    """Dicts whose names are those of a list, with more than ten entries, and gaps."""
    values = Values(35)
    return {"list_like": {str(n): values(n % 3 + 1) for n in range(12)},
            "gap": {"0": values(1), "2": values(2)}, "one": {"0": values(3)},
            "list": [values(n % 4 + 1) for n in range(12)]}


@content
def odd_keys_slash():
    """Names with slashes, as haiku and SpectralNorm have them."""
    values = Values(36)
    return {"x/y": values(2), "x": {"z": values(3)}, "a/b/c": {"d/e": values(1)},
            "mlp/~/linear_0": {"w": values(2, 2), "b": values(2)}}


@content
def odd_keys_slash_clash():
    """A name with a slash beside the path it looks like."""
    values = Values(37)
    return {"a/b": values(2), "a": {"b": values(3)}}


@content
def odd_keys_dot_clash():
    """A name with a dot beside the path it looks like."""
    values = Values(38)
    return {"a.b": values(2), "a": {"b": values(2)}, "beside": values(3)}


@content
def odd_keys_abs():
    """Names that are paths: out of the folder, and from the root."""
    values = Values(39)
    return {"a": values(1), "lead": {"/abs": values(2)}, "up": {"..": values(3)}}


@content
def odd_keys_backslash():
    """A name with a backslash."""
    values = Values(40)
    return {"back\\slash": values(2), "beside": values(3)}


@content
def odd_keys_empty():
    """An empty name."""
    values = Values(41)
    return {"": values(2), "below": {"": values(1)}, "beside": values(3)}


@content
def odd_keys_reserved():
    """Names that formats use for their own files and marks."""
    values = Values(42)
    names = ("checkpoint", "_METADATA", "d", "manifest.ocdbt", "_sharding", ".zarray", "zarr.json",
             "array_metadatas", "_strings.json", "tree", "default", "shape", "chunks")
    return {name: values(n % 3 + 1) for n, name in enumerate(names)}


@content
def odd_keys_namedtuple():
    """Dicts that nearly look like the namedtuples of flax <= 0.3.4."""
    values = Values(43)
    return {"user": {"name": values(1), "fields": values(2), "values": values(3)},
            "empty": {"name": "x", "fields": {}, "values": values(2)},
            "short": {"name": "Point", "fields": {"0": "x", "1": "y"}, "values": {"0": values(1)}}}


@content
def odd_keys_int():
    """Numbers for names."""
    values = Values(44)
    return {"layers": {0: values(1), 1: values(2), 10: values(3), -1: values(4)}, "b": values(2)}


@content
def odd_keys_mixed():
    """Names of several types in one dict."""
    values = Values(45)
    return {"layers": {1: values(1), "a": values(2)}, "true": {True: values(3)}}


class Point(collections.namedtuple("Point", "x y")):
    """A namedtuple."""


EmptyPoint = collections.namedtuple("EmptyPoint", "")


@flax.struct.dataclass
class Box:
    """A dataclass of flax, with a field that is no part of the tree."""

    value: Any
    other: Any
    label: str = flax.struct.field(pytree_node=False, default="kept out")


@content
def odd_nest():
    """Lists, tuples, namedtuples and dataclasses in each other, and empty ones."""
    values = Values(46)
    return {
        "list": [values(1), [values(2), {"k": values(3)}], (values(4),)],
        "tuple": (values(1), (values(2), [values(3)])),
        "point": Point(values(1), {"in": [values(2)]}),
        "points": [Point(values(1), values(2)), Point(values(3), Point(values(4), None))],
        "box": Box(values(2), Point(values(1), Box(values(3), (values(2),)))),
        "twelve": [values(n + 1) for n in range(12)],
        "deep": {"a": {"b": {"c": {"d": {"e": {"f": values(2)}}}}}},
    }


@content
def odd_empty():
    """Empty containers of every kind, and None."""
    values = Values(47)
    return {"dict": {}, "list": [], "tuple": (), "point": EmptyPoint(), "none": None,
            "in": {"dict": {"dict": {}}, "list": [[], (), {}], "array": values(2)},
            "beside": values(3)}


@content
def odd_none():
    """None in every place where there may be one."""
    values = Values(48)
    return {"none": None, "list": [None, values(1), None], "point": Point(None, values(2)),
            "deep": {"a": {"b": None}}, "beside": values(3)}


@content
def odd_root_list():
    """A tree whose root is a list."""
    values = Values(49)
    return [values(2), {"a": values(3)}, (values(1), values(4))]


@content
def odd_strings():
    """Text: empty, long, of other scripts, with line ends, and like JSON."""
    return {"empty": "", "long": "lorem " * 60, "script": "naïve 日本語 🙂", "lines": "a\nb\r\n\tc",
            "json": '{"a": [1]}', "nul": "a\x00b", "number": "12", "list": ["a", "b", ["c"]],
            "deep": {"er": {"text": "x"}}, "array": Values(50).numpy(np.float32, 2)}


@content
def odd_strings_marks():
    """Text that looks like what formats write for arrays kept elsewhere."""
    return {"placeholder": "PLACEHOLDER://nowhere", "gda": "//GDAPlaceholder", "slash": "//GDA",
            "array": Values(51).numpy(np.float32, 2)}


@content
def odd_bytes():
    """Python's bytes."""
    return {"empty": b"", "bytes": bytes(range(256)), "array": Values(52).numpy(np.float32, 2)}


@content
def odd_npbool():
    """Numpy's bool."""
    return {"yes": np.bool_(True), "no": np.bool_(False), "array": Values(53)(2)}


@content
def odd_pycomplex():
    """Python's complex numbers."""
    return {"c": 1.5 - 2.25j, "i": 1j, "zero": complex(0, -0.0), "array": Values(54)(2)}


@content
def odd_ordered():
    """An OrderedDict, names not in order."""
    values = Values(55)
    return {"ordered": collections.OrderedDict([("z", values(1)), ("a", values(2))]),
            "beside": values(3)}


@content
def odd_defaultdict():
    """A defaultdict."""
    values = Values(56)
    made = collections.defaultdict(list)
    made["a"] = values(2)
    return {"default": made, "beside": values(3)}


@content
def odd_deep():
    """A tree of sixty levels."""
    values = Values(57)
    tree = {"leaf": values(2)}
    for level in range(60):
        tree = {f"l{level}": tree}
    return tree


@content
def odd_many():
    """Many leaves, with names that sort otherwise as text than as numbers."""
    values = Values(58)
    return {"blocks": {f"block_{n}": {"w": values(n % 4 + 1)} for n in range(120)}}


@content
def chunked():
    """Arrays below, at and above a chunk limit of 256 bytes (see the writers that lower it)."""
    values = Values(59)
    return {"params": {"below": values(8, 7), "exact": values(8, 8), "above": values(5, 13),
                       "many": values(3, 5, 20), "bf16": values(20, 10, dtype=jnp.bfloat16),
                       "one": values(65, 1, 1)},
            "f64": values.numpy(np.float64, 40), "u8": values.numpy(np.uint8, 1000),
            "bool": values.numpy(bool, 300), "c64": values.numpy(np.complex64, 7, 9),
            "i16": values.numpy(np.int16, 11, 17), "list": [values(70), values(3)],
            "step": 3}


@content
def chunked_root():
    """No tree: one array above the chunk limit."""
    return Values(60).numpy(np.float32, 9, 21)


@content
def typed_key():
    """New-style PRNG keys of several implementations beside ordinary arrays."""
    return {"key": jax.random.key(0), "batch": jax.random.split(jax.random.key(1), 3),
            "grid": jax.random.split(jax.random.key(4), (2, 2)),
            "rbg": jax.random.key(2, impl="rbg"), "raw": jax.random.PRNGKey(3),
            "unsafe": jax.random.key(5, impl="unsafe_rbg"), "array": Values(61)(4)}
