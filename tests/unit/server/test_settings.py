"""Settings: precedence, and errors that name the key."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MOERGATE_HOME", "MOERGATE_PORT", "MOERGATE_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_environment_over_file_over_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('port = 1\nmax_loras = 2\nmax_queue = 3\n[policies.auto]\nrouter = "knn"\noptions = {k = 5}\n')
    monkeypatch.setenv("MOERGATE_MAX_LORAS", "20")
    monkeypatch.setenv("MOERGATE_PORT", "10")
    settings = load_settings({"port": 100, "max_queue": None}, config=file)
    assert (settings.port, settings.max_loras, settings.max_queue, settings.max_concurrency) == (100, 20, 3, 256)
    assert settings.policies["auto"].options == {"k": 5}


def test_the_home_folders_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "moergate.toml").write_text("port = 77\n")
    assert load_settings({"home": tmp_path}).port == 77


@pytest.mark.parametrize(
    ("flags", "file", "variable", "hint"),
    [
        ({"port": 70000}, "", None, "port"),
        ({}, "prot = 1", None, "'prot'; did you mean 'port'"),
        ({}, "port = ", None, "not TOML"),
        ({}, "", ("MOERGATE_PROT", "1"), "MOERGATE_PROT is not a setting; did you mean 'port'"),
        ({}, "", ("MOERGATE_PORT", "many"), "port"),
        ({"max_lora_rank": 7}, "", None, "max_lora_rank: .*must be one of"),
        ({"engine_url": ["engine:8000"]}, "", None, "engine_url.*http://"),
        ({}, '[policies.other]\nrouter = "knn"', None, "policies.*auto"),
        ({}, '[policies.auto]\nruoter = "knn"', None, "policies.auto.ruoter"),
        ({"dtype": "float8"}, "", None, "dtype"),
    ],
)
def test_bad_settings_are_named(
    flags: dict[str, object],
    file: str,
    variable: tuple[str, str] | None,
    hint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.toml"
    path.write_text(file)
    if variable:
        monkeypatch.setenv(*variable)
    with pytest.raises(SettingsError, match=hint):
        load_settings(flags, config=path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load_settings({}, config=tmp_path / "absent.toml")


def test_there_are_at_most_forty_five_settings_all_described() -> None:
    assert len(Settings.model_fields) <= 45  # docs/decisions/0011
    assert all(field.description for field in Settings.model_fields.values())
