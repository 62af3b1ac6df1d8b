"""The arithmetic as an opaque operation: what can be checked without a GPU of compiled models and cut graphs."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from vllm.compilation.backends import split_graph  # noqa: E402
from vllm.config.compilation import CompilationConfig, CompilationMode, CUDAGraphMode  # noqa: E402

from server.engine.recipes import parse  # noqa: E402
from server.vllm_plugin.kernels.batch import Batch  # noqa: E402
from server.vllm_plugin.kernels.expert_linear import ExpertLinear  # noqa: E402
from server.vllm_plugin.kernels.module_weights import SliceWeights  # noqa: E402
from server.vllm_plugin.plans import plan_of  # noqa: E402
from server.vllm_plugin.worker.layer_adapters import ModuleWrapper  # noqa: E402
from server.vllm_plugin.worker.torch_op import NAME, install_splitting  # noqa: E402

A, B = "a@00000000", "b@00000000"
PLANS = {
    1: plan_of(parse(A)),
    2: plan_of(parse(f"mix({A}*0.5,{B}*0.25)")),
    3: plan_of(parse(f"gate(arrow,k=1,t=1;{A},{B})")),
}
D_IN, D_OUT = 12, 8


class Layer(torch.nn.Module):
    """A linear layer with experts, as vLLM's LoRA layers call the wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(D_IN, D_OUT)
        self.batch = Batch(torch.float32, torch.device("cpu"))
        self.linear = ExpertLinear(self.batch, D_IN, (D_OUT,))
        for expert in (A, B):
            self.linear.put(expert, [SliceWeights(torch.randn(2, D_IN), torch.randn(2, D_OUT), torch.randn(D_IN))])
        self.wrapper = ModuleWrapper("test.layer", self.linear, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x * 2.0)
        self.wrapper.add_lora_linear(y, x)
        return y.sigmoid()


@torch.inference_mode()
def test_a_compiled_layer_follows_every_new_batch_without_recompiling() -> None:
    layer = Layer()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    answers = []
    for rows in ([1, 1, 1, 1], [0, 1, 2, 3], [0, 0, 0, 0], [3, 2, 2, 0]):
        layer.batch.update(rows, PLANS, {A: 2, B: 2})
        x = torch.randn(len(rows), D_IN)
        ours = compiled(x)
        torch.testing.assert_close(ours, layer(x), rtol=0, atol=1e-6)
        answers.append(ours)
        plain = layer.base(x * 2.0).sigmoid()
        changed = (ours - plain).abs().amax(dim=1) > 1e-6
        assert changed.tolist() == [row > 0 for row in rows]
    assert counter.frame_count == 1


def test_vllm_cuts_graphs_at_the_operation_and_captures_no_full_graph() -> None:
    install_splitting()
    config = CompilationConfig(mode=CompilationMode.VLLM_COMPILE, cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE)
    config.set_splitting_ops_for_v1(all2all_backend="allgather_reducescatter")
    assert NAME in config.splitting_ops
    assert config.splitting_ops_contain_attention()
    assert config.cudagraph_mode == CUDAGraphMode.PIECEWISE

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x * 2.0
        torch.ops.moergate.add_experts(y, x, "test.layer")
        return y + 1.0

    graph = make_fx(forward, tracing_mode="fake")(torch.randn(3, 4))
    _, pieces = split_graph(graph, config.splitting_ops)
    assert [piece.is_splitting_graph for piece in pieces] == [False, True, False]


def test_an_eager_engine_is_unchanged() -> None:
    install_splitting()
    config = CompilationConfig(mode=CompilationMode.NONE, cudagraph_mode=CUDAGraphMode.NONE)
    config.set_splitting_ops_for_v1(all2all_backend="allgather_reducescatter")
    assert config.splitting_ops == []
    assert config.cudagraph_mode == CUDAGraphMode.NONE
