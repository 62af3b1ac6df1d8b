"""Packed products against plain ones, on random inputs."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="vLLM is not installed")

from server.vllm_plugin.kernels.packed_products import PACK_AFTER, PackedMatrix, can_pack  # noqa: E402

CPU = torch.device("cpu")


def test_only_bfloat16_on_a_cpu_is_packed() -> None:
    assert not can_pack(torch.float32, CPU)
    assert not can_pack(torch.bfloat16, torch.device("meta"))


@pytest.mark.skipif(not can_pack(torch.bfloat16, CPU), reason="no bfloat16 kernels for this processor")
@pytest.mark.parametrize("num_rows", [1, 3, 16, 64, 200])
def test_a_packed_product_is_the_product(num_rows: int, fresh_seed: int) -> None:
    generator = torch.Generator().manual_seed(fresh_seed)
    for d_in, d_out in ((576, 24), (8, 576), (24, 960), (1536, 3)):
        x = torch.randn(num_rows, d_in + 8, generator=generator).bfloat16()[:, 4 : d_in + 4]  # rows with gaps between
        matrix = torch.randn(d_in, d_out, generator=generator).bfloat16()
        times = PackedMatrix(lambda matrix=matrix: matrix)  # type: ignore[misc]
        expected = x.double() @ matrix.double()
        error = (times(x).double() - expected).abs().max() / expected.abs().max()
        assert error < 2**-8


def test_a_matrix_is_packed_once_it_was_used_a_few_times() -> None:
    times = PackedMatrix(lambda: torch.zeros(1, 1))
    assert [times.is_ready() for _ in range(PACK_AFTER + 2)] == [False] * PACK_AFTER + [True, True]
