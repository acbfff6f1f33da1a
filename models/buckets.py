"""The fold of an event inside an ONNX file, as a hash of its identity.

The graph is that of contract 2: h = splitmix64(sample), then h = splitmix64(h ^ column) for each identity column in
turn, and the fold is splitmix64(h ^ splitmix64(salt)) modulo the number of folds, all in unsigned 64-bit integers
(splitmix64: Steele, Lea, Flood, OOPSLA 2014, doi:10.1145/2660193.2660195).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_ADDED, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TAKEN = ("features", "sample", "fold", "routed", "ensemble", "spread")


@dataclass(frozen=True)
class Buckets:
    """How events are given to folds.

    Attributes:
        columns: The identity columns, in their order.
        samples: The key of each sample, int64.
        salt: The key of the salt, int64.
        count: Number of folds.
    """

    columns: tuple[str, ...]
    samples: dict[str, int]
    salt: int
    count: int

    def __post_init__(self) -> None:
        for name in self.columns:
            if name in _TAKEN:
                raise ValueError(f"An identity column is called {name!r}, as an input or output of the file is.")

    @property
    def metadata(self) -> dict[str, str]:
        """What a file says of them."""
        return {"identity": json.dumps(self.columns), "samples": json.dumps(self.samples)}

    def put_before(self, model: onnx.ModelProto) -> None:
        """Replace a model's input ``fold`` by ``sample`` and the identity columns, int64 ``[N]`` each.

        Args:
            model: With an input ``fold``, int64 ``[N]``, which becomes an output.
        """
        from onnx import TensorProto, helper

        fold = next(entry for entry in model.graph.input if entry.name == "fold")
        size = fold.type.tensor_type.shape.dim[0].dim_param
        graph = _Graph()
        mixed = graph.mixed(graph.word("sample"))
        for name in self.columns:
            mixed = graph.mixed(graph.add("BitwiseXor", mixed, graph.word(name)))
        salt = graph.mixed(graph.constant("salt", self.salt % 2**64))
        salted = graph.mixed(graph.add("BitwiseXor", mixed, salt))
        rest = graph.add("Mod", salted, graph.constant("count", self.count))
        graph.nodes.append(helper.make_node("Cast", [rest], ["fold"], to=TensorProto.INT64))

        model.graph.output.append(fold)
        model.graph.input.remove(fold)
        names = ("sample", *self.columns)
        model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.INT64, [size]) for name in names)
        model.graph.initializer.extend(graph.constants)
        rows = [*graph.nodes, *model.graph.node]  # in the order of computing
        del model.graph.node[:]
        model.graph.node.extend(rows)


@dataclass
class _Graph:
    """Nodes and constants of a graph of unsigned 64-bit integers."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: int) -> str:
        from onnx import TensorProto, helper

        own = f"identity_{name}"
        if own not in {constant.name for constant in self.constants}:
            self.constants.append(helper.make_tensor(own, TensorProto.UINT64, [1], [value]))
        return own

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"identity_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def word(self, name: str) -> str:
        """An input, with the bits that it has."""
        from onnx import TensorProto

        return self.add("Cast", name, to=TensorProto.UINT64)

    def mixed(self, state: str) -> str:
        """One step of splitmix64."""
        found = self.add("Add", state, self.constant("added", _ADDED))
        found = self.add("Mul", self._folded(found, 30), self.constant("first", _FIRST))
        found = self.add("Mul", self._folded(found, 27), self.constant("second", _SECOND))
        return self._folded(found, 31)

    def _folded(self, word: str, bits: int) -> str:
        """word ^ (word >> bits)."""
        shifted = self.add("BitShift", word, self.constant(f"shift{bits}", bits), direction="RIGHT")
        return self.add("BitwiseXor", word, shifted)
