"""RMS norms by vLLM's kernels for CPUs: the figures of its own default, and chosen where a model is run eagerly."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import ir  # noqa: E402
from vllm.config.compilation import CompilationMode  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

from server.vllm_plugin.kernels import rms_norm  # noqa: E402

if not current_platform.is_cpu():
    pytest.skip("for CPUs only", allow_module_level=True)
EPSILON = 1e-5


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed for one test."""
    kind = type(current_platform)
    monkeypatch.setattr(kind, "get_default_ir_op_priority", kind.get_default_ir_op_priority)
    rms_norm.install_norms()


def reference(x: Any, weight: Any) -> Any:
    """The formula in float64."""
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 2e-2, 1e-3)])
@pytest.mark.parametrize("shape", [(1, 576), (37, 64), (2, 5, 128)])
@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_both_norms_are_the_formula(shape: tuple[int, ...], dtype: Any, rtol: float, atol: float) -> None:
    x, residual, weight = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), torch.randn(shape[-1:])
    weight = weight.to(dtype)
    ours = ir.ops.rms_norm.impls[rms_norm.PROVIDER].impl_fn(x, weight, EPSILON)
    torch.testing.assert_close(ours.double(), reference(x, weight), rtol=rtol, atol=atol)
    summed = x.double() + residual.double()
    normed, total = ir.ops.fused_add_rms_norm.impls[rms_norm.PROVIDER].impl_fn(
        x.clone(), residual.clone(), weight, EPSILON
    )
    torch.testing.assert_close(total.double(), summed, rtol=rtol, atol=atol)
    torch.testing.assert_close(normed.double(), reference(summed, weight), rtol=rtol, atol=atol)


@torch.inference_mode()  # type: ignore[untyped-decorator]
def test_what_the_kernels_cannot_do_is_left_to_the_default() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    residual, strided = torch.randn(4, 8), torch.randn(8, 4).T
    norm, add = (op.impls[rms_norm.PROVIDER].supports_args for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm))
    assert norm(x, weight, EPSILON) and add(x, residual, weight, EPSILON)
    assert not norm(x, None, EPSILON)
    assert not norm(x, weight.bfloat16(), EPSILON)
    assert not norm(strided, weight, EPSILON)
    assert not norm(x, weight, EPSILON, variance_size=4)
    assert not add(x, strided, weight, EPSILON)
    assert not add(x, residual.bfloat16(), weight, EPSILON)


def test_they_are_chosen_where_the_model_is_run_eagerly() -> None:
    def priority(mode: CompilationMode) -> Any:
        return current_platform.get_default_ir_op_priority(
            SimpleNamespace(compilation_config=SimpleNamespace(mode=mode))
        )

    eager = priority(CompilationMode.NONE)
    assert eager.rms_norm == eager.fused_add_rms_norm == [rms_norm.PROVIDER, "native"]
    assert eager.gelu_and_mul_sparse == ["native"]
    assert priority(CompilationMode.VLLM_COMPILE).rms_norm == ["native"]
