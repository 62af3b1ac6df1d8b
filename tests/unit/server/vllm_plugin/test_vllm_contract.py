"""What the plugin relies on in vLLM is there, and its absence would be named."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from server.vllm_plugin import vllm_contract

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of vLLM's own imports


def test_what_the_plugin_relies_on_is_there() -> None:
    vllm_contract.check_vllm()


def test_a_changed_vllm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_contract, "SUPPORTED", ("0.1",))
    monkeypatch.delattr("vllm.lora.request.LoRARequest")
    with pytest.raises(vllm_contract.UnsupportedVllm, match=r"tested with 0\.1; .*LoRARequest is missing"):
        vllm_contract.check_vllm()
