"""How rows are split between vLLM's kernels and ours where vLLM has kernels: what can be checked without a GPU."""

from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from server.engine.recipes import parse  # noqa: E402
from server.vllm_plugin.kernels.batch import Batch  # noqa: E402
from server.vllm_plugin.kernels.expert_linear import ExpertLinear  # noqa: E402
from server.vllm_plugin.kernels.module_weights import SliceWeights  # noqa: E402
from server.vllm_plugin.plans import plan_of  # noqa: E402
from server.vllm_plugin.worker.layer_adapters import BatchWrapper, ModuleWrapper, forward_over, split_recipes  # noqa: E402

A, B = "a@00000000", "b@00000000"
PLANS = {1: plan_of(parse(A)), 2: plan_of(parse(f"mix({A}*0.5,{B}*0.5)")), 3: plan_of(parse(B))}
NAMES = {101: A, 102: B}


@dataclass
class Mapping:
    """As vLLM's LoRAMapping."""

    index_mapping: tuple[int, ...]
    prompt_mapping: tuple[int, ...]


@dataclass
class Theirs:
    """A stand-in for vLLM's kernels: adds the row's LoRA id."""

    mapping: Any = None

    def update_metadata(self, mapping: Any, *_args: Any, **_kwargs: Any) -> None:
        self.mapping = mapping

    def add_lora_linear(self, y: Any, x: Any, *_args: Any, **_kwargs: Any) -> None:
        y += torch.tensor(self.mapping.index_mapping)[:, None]

    def add_lora_embedding(self) -> str:
        return "theirs"


@dataclass
class Resident:
    """What is resident."""

    batch: Batch
    plans: Any = field(default_factory=lambda: PLANS)
    ranks: Any = field(default_factory=lambda: {A: 1, B: 1})
    names: Any = field(default_factory=lambda: NAMES)


def test_single_experts_are_theirs_and_everything_else_is_ours() -> None:
    ours, theirs = split_recipes([0, 1, 2, 3, 2, 9], PLANS, NAMES)
    assert ours == [0, 0, 2, 0, 2, 0]
    assert theirs == [0, 101, 0, 102, 0, 0]


def test_every_row_gets_exactly_its_own() -> None:
    batch = Batch(torch.float32, torch.device("cpu"))
    linear = ExpertLinear(batch, 2, (3,))
    for name, size in ((A, 1.0), (B, 10.0)):
        linear.put(name, [SliceWeights(torch.full((1, 2), size), torch.ones(1, 3))])
    theirs = Theirs()
    wrapper = BatchWrapper(Resident(batch), theirs)
    wrapper.update_metadata(Mapping((0, 1, 2, 3), (0, 1, 2, 3)), [101, 102], 2, 100)
    y = torch.zeros(4, 3)
    ModuleWrapper("layer", linear, theirs).add_lora_linear(y, torch.ones(4, 2), None, None, 1.0, (3,))
    assert y[:, 0].tolist() == [0.0, 101.0, 0.5 * 2 + 0.5 * 20, 102.0]
    assert theirs.mapping.prompt_mapping == [0, 101, 0, 102]
    assert wrapper.add_lora_embedding() == "theirs"


def test_on_the_cpu_there_is_nothing_of_theirs() -> None:
    wrapper = BatchWrapper(Resident(Batch(torch.float32, torch.device("cpu"))), None)
    assert not hasattr(wrapper, "add_lora_logits")


class Returning(torch.nn.Linear):  # type: ignore[misc]
    """A linear layer that returns its output as vLLM's do: with a bias that was left out, or by itself."""

    def __init__(self, *, with_bias: bool) -> None:
        super().__init__(2, 3)
        self.with_bias = with_bias

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        return (y, self.bias) if self.with_bias else y


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 2), (1, 4, 2)])
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_the_experts_part_is_added_to_what_the_layer_returns(shape: tuple[int, ...], with_bias: bool) -> None:
    batch = Batch(torch.float32, torch.device("cpu"))
    linear = ExpertLinear(batch, 2, (3,))
    a, b, x = torch.randn(1, 2), torch.randn(1, 3), torch.randn(shape)
    linear.put(A, [SliceWeights(a, b)])
    base = Returning(with_bias=with_bias)
    forward = forward_over(base, ModuleWrapper("layer", linear, None))
    wanted = torch.nn.functional.linear(x, base.weight, base.bias)
    for rows in ([0, 0, 0, 0], [0, 1, 1, 0]):
        batch.update(rows, PLANS, {A: 1})
        returned = forward(x)
        y = returned[0] if with_bias else returned
        with_expert = wanted + torch.tensor(rows)[:, None] * (x @ a.T @ b)
        torch.testing.assert_close(y, with_expert, rtol=0, atol=1e-5)
        if with_bias:
            assert returned[1] is base.bias
