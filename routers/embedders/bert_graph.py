"""A BERT-like sentence encoder as an ONNX graph, written directly from its safetensors weights.

It is used once, when an encoder is first opened, and needs `onnx` and `safetensors` but not torch. The graph includes
pooling and normalisation. Shapes: b texts, t tokens, h hidden, a heads, d = h / a.

    x = LN(E_word[ids] + E_pos[:t] + E_type[0])                                (b, t, h)
    q, k, v = split(x W_qkv + b_qkv)                                           (b, a, t, d) each
    x = LN(x + softmax(q kᵀ / √d + mask) v W_o + b_o)
    x = LN(x + gelu(x W_1 + b_1) W_2 + b_2)
    y = Σ_t mask · x,  embedding = y / ‖y‖                                     (b, h); the mean has the same direction

`int8` computes the four linear maps of each layer in integers. `int7` does the same with a smaller range: processors
without VNNI add pairs of products in 16 bits, where 2 · 255 · 127 saturates and 2 · 181 · 90 does not. Weights are
rounded once, with one scale per output channel. Inputs are rounded at run time, with one scale per token: tokens differ
in size (the separator's is far larger after GELU), and so a text's vector does not depend on the other texts in the
batch. LayerNorm outputs have a few large channels, so they are divided by s_j = max|X_j|^α / max|W_j|^(1-α) and the
weights multiplied by it, which is exact before rounding (SmoothQuant, Xiao et al., 2023; α = 0.65); max|X_j| comes from
a calibration run. Embedding tables, LayerNorm, softmax and GELU stay float32. Standard LayerNorm and plain attention
nodes measured faster than the fused contrib ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float32]]
Precision = Literal["fp32", "int8", "int7"]

_MS = "com.microsoft"
_SMOOTHED = ("qkv", "up")
_ALPHA = 0.65
_LARGEST: Mapping[Precision, int] = {"int8": 127, "int7": 90}
"""Largest integer of inputs and weights."""


@dataclass(frozen=True, slots=True)
class BertShape:
    """The part of a BERT configuration that the graph needs."""

    num_layers: int
    num_heads: int
    hidden: int
    norm_epsilon: float

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> BertShape | None:
        """Read a `config.json`; None if this module cannot write the model."""
        if config.get("model_type") != "bert" or config.get("hidden_act", "gelu") != "gelu":
            return None
        if config.get("position_embedding_type", "absolute") != "absolute":
            return None
        try:
            return cls(
                num_layers=int(config["num_hidden_layers"]),
                num_heads=int(config["num_attention_heads"]),
                hidden=int(config["hidden_size"]),
                norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
            )
        except (KeyError, TypeError, ValueError):
            return None


class BertGraph:
    """A builder of the nodes of one graph; `taps` names the inputs of the linear maps, for calibration."""

    def __init__(
        self,
        weights: Weights,
        shape: BertShape,
        precision: Precision,
        magnitudes: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Take the weights; `magnitudes[tap]`, (channels,), is the largest absolute input of a linear map."""
        self.taps: dict[str, str] = {}
        self._weights = {name.removeprefix("bert."): np.asarray(w, np.float32) for name, w in weights.items()}
        self._shape = shape
        self._precision = precision
        self._magnitudes = magnitudes or {}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._num_names = 0

    def model(self, *, with_taps: bool = False) -> Any:
        """Return the `onnx.ModelProto`: input_ids, attention_mask (b, t) int64 → embedding (b, h) float32."""
        from onnx import TensorProto, helper

        states = self._embeddings()
        bias = self._attention_bias()
        for layer in range(self._shape.num_layers):
            states = self._layer(f"encoder.layer.{layer}.", states, bias)
        self._pool(states)
        ids_shape = ["b", "t"]
        outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", self._shape.hidden])]
        if with_taps:
            outputs += [helper.make_tensor_value_info(t, TensorProto.FLOAT, None) for t in self.taps.values()]
        graph = helper.make_graph(
            self._nodes,
            "sentence_encoder",
            [
                helper.make_tensor_value_info("input_ids", TensorProto.INT64, ids_shape),
                helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ids_shape),
            ],
            outputs,
            self._constants,
        )
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid(_MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    # -- the parts of the network ---------------------------------------------------------------------------------

    def _embeddings(self) -> str:
        positions = self._weights["embeddings.position_embeddings.weight"]
        positions = positions + self._weights["embeddings.token_type_embeddings.weight"][0]
        words = self._op("Gather", self._parameter("embeddings.word_embeddings.weight"), "input_ids")
        num_tokens = self._op("Slice", self._op("Shape", "input_ids"), self._ints(1), self._ints(2))
        used = self._op("Slice", self._constant(positions), self._ints(0), num_tokens, self._ints(0))
        return self._norm(self._op("Add", words, used), "embeddings.LayerNorm.")

    def _attention_bias(self) -> str:
        """Add the attention bias, (b, 1, 1, t): 0 for a token, -10000 for padding."""
        mask = self._op("Unsqueeze", self._float_mask(), self._ints(1, 2))
        return self._op("Mul", self._op("Sub", self._floats(1.0), mask), self._floats(-10000.0))

    def _layer(self, prefix: str, states: str, bias: str) -> str:
        heads, width = self._shape.num_heads, self._shape.hidden // self._shape.num_heads
        names = [f"{prefix}attention.self.{part}." for part in ("query", "key", "value")]
        kernels = [self._weights[name + "weight"] for name in names]
        offsets = [self._weights[name + "bias"] for name in names]
        scale = np.float32(1.0 / np.sqrt(width))
        kernel = np.concatenate([kernels[0] * scale, *kernels[1:]])
        offset = np.concatenate([offsets[0] * scale, *offsets[1:]])

        fused = self._linear(states, kernel, offset, prefix + "qkv")
        fused = self._op("Reshape", fused, self._ints(0, 0, 3 * heads, width))
        query, key, value = self._split(self._op("Transpose", fused, perm=[0, 2, 1, 3]))
        scores = self._op("FusedMatMul", query, key, domain=_MS, transB=1)
        shares = self._op("Softmax", self._op("Add", scores, bias), axis=-1)
        mixed = self._op("Transpose", self._op("MatMul", shares, value), perm=[0, 2, 1, 3])
        mixed = self._op("Reshape", mixed, self._ints(0, 0, self._shape.hidden))
        states = self._residual(mixed, states, prefix + "attention.output.", prefix + "out")

        inner = self._linear(states, self._weights[prefix + "intermediate.dense.weight"], None, prefix + "up")
        inner = self._op("BiasGelu", inner, self._parameter(prefix + "intermediate.dense.bias"), domain=_MS)
        return self._residual(inner, states, prefix + "output.", prefix + "down")

    def _residual(self, branch: str, states: str, prefix: str, tap: str) -> str:
        kernel, offset = self._weights[prefix + "dense.weight"], self._weights[prefix + "dense.bias"]
        branch = self._linear(branch, kernel, offset, tap)
        return self._norm(self._op("Add", branch, states), prefix + "LayerNorm.")

    def _pool(self, states: str) -> None:
        mask = self._op("Unsqueeze", self._float_mask(), self._ints(2))
        total = self._op("ReduceSum", self._op("Mul", states, mask), self._ints(1), keepdims=0)
        self._op("Div", total, self._op("ReduceL2", total, self._ints(1), keepdims=1), output="embedding")

    def _linear(self, x: str, kernel: NDArray[np.float32], offset: NDArray[np.float32] | None, tap: str) -> str:
        """Add x Wᵀ + b with `kernel` W of shape (out, in)."""
        self.taps[tap] = x
        if self._precision == "fp32":
            y = self._op("MatMul", x, self._constant(kernel.T))
        else:
            if tap in self._magnitudes and tap.endswith(_SMOOTHED):
                factor = smoothing(self._magnitudes[tap], kernel)
                x, kernel = self._op("Mul", x, self._constant(1.0 / factor)), kernel * factor
            y = self._quantised(x, kernel)
        return y if offset is None else self._op("Add", y, self._constant(offset))

    def _quantised(self, x: str, kernel: NDArray[np.float32]) -> str:
        """x Wᵀ in integers: rows of x and of W are scaled to [-1, 1] and rounded to 1/127, or 1/90 for `int7`."""
        limit = _LARGEST[self._precision]
        largest = self._op("ReduceMax", self._op("Abs", x), self._ints(2), keepdims=1)
        rows = self._op("Div", x, self._op("Max", largest, self._floats(1e-6)))
        step, zero = self._constant(np.array(1 / limit, np.float32)), self._constant(np.array(limit + 1, np.uint8))
        rows = self._op("QuantizeLinear", rows, step, zero)
        scale = np.maximum(np.abs(kernel).max(axis=1), 1e-12).astype(np.float32) / np.float32(limit)
        whole = np.clip(np.rint(kernel / scale[:, None]), -limit, limit).astype(np.int8)
        y = self._op(
            "MatMulIntegerToFloat",
            rows,
            self._constant(whole.T),
            step,
            self._constant(scale),
            zero,
            domain=_MS,
        )
        return self._op("Mul", y, largest)

    # -- plumbing -------------------------------------------------------------------------------------------------

    def _op(self, kind: str, *inputs: str, domain: str = "", output: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output or self._name()
        self._nodes.append(helper.make_node(kind, list(inputs), [output], domain=domain, **attributes))
        return output

    def _split(self, x: str) -> tuple[str, str, str]:
        from onnx import helper

        parts = self._name(), self._name(), self._name()
        self._nodes.append(helper.make_node("Split", [x], list(parts), axis=1, num_outputs=3))
        return parts

    def _norm(self, x: str, prefix: str) -> str:
        gain, offset = self._parameter(prefix + "weight"), self._parameter(prefix + "bias")
        return self._op("LayerNormalization", x, gain, offset, epsilon=self._shape.norm_epsilon, axis=-1)

    def _float_mask(self) -> str:
        from onnx import TensorProto

        return self._op("Cast", "attention_mask", to=TensorProto.FLOAT)

    def _name(self) -> str:
        self._num_names += 1
        return f"n{self._num_names}"

    def _parameter(self, name: str) -> str:
        return self._constant(self._weights[name])

    def _ints(self, *values: int) -> str:
        return self._constant(np.array(values, dtype=np.int64))

    def _floats(self, *values: float) -> str:
        return self._constant(np.array(values, dtype=np.float32))

    def _constant(self, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = self._name()
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def smoothing(magnitude: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return SmoothQuant's factors, shape (in,), geometric mean 1; they divide the input and multiply the kernel."""
    of_weights = np.maximum(np.abs(kernel).max(axis=0), 1e-6)
    factor = np.maximum(magnitude, 1e-5) ** _ALPHA / of_weights ** (1 - _ALPHA)
    factor = factor / np.exp(np.log(factor).mean())
    return np.asarray(np.maximum(factor, 1e-2), dtype=np.float32)
