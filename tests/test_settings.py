"""Settings: which source wins, which names work, and that a slip is told with the right word."""

import os
from pathlib import Path

import pytest

from perdure.settings import Settings, SettingsError, read, unknown_variables


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and none of the developer's own variables."""
    foreign = ("OPENAI", "ANTHROPIC", "OLLAMA", "LMSTUDIO", "VLLM", "OPENROUTER", "LLAMACPP", "LETTA", "PERDURE")
    for name in list(os.environ):
        if name.startswith(foreign):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PERDURE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_needs_to_be_set() -> None:
    """The defaults are a server for this machine, with its data in the data directory."""
    settings = read()
    assert (settings.host, settings.port, settings.password) == ("127.0.0.1", 8283, None)
    assert settings.database == f"sqlite:///{settings.home}/perdure.db"
    assert str(Settings().home) == str(Path.home() / ".perdure")


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source fills in what those before it leave open."""
    (nowhere / "perdure.toml").write_text('host = "::1"\nport = 1\ndrain_seconds = 3\n')
    monkeypatch.setenv("PERDURE_PORT", "2")
    monkeypatch.setenv("PERDURE_HOST", "localhost")
    settings = read({"port": 3, "host": None})
    assert (settings.port, settings.host, settings.drain_seconds) == (3, "localhost", 3)


def test_the_file_is_looked_for_in_three_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The named one, else the one here, else the one with the data."""
    (nowhere / "data").mkdir()
    (nowhere / "data" / "perdure.toml").write_text("port = 1")
    assert read().port == 1
    (nowhere / "perdure.toml").write_text("port = 2")
    assert read().port == 2
    (nowhere / "other.toml").write_text("port = 3")
    monkeypatch.setenv("PERDURE_CONFIG", "other.toml")
    assert read().port == 3
    monkeypatch.setenv("PERDURE_CONFIG", "gone.toml")
    with pytest.raises(SettingsError, match=r"PERDURE_CONFIG names gone\.toml, which is no file"):
        read()


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("OPENAI_API_KEY", "openai_api_key"),
        ("ANTHROPIC_API_KEY", "anthropic_api_key"),
        ("OPENROUTER_API_KEY", "openrouter_api_key"),
        ("LETTA_SERVER_PASSWORD", "server_password"),
        ("LETTA_PG_URI", "database_url"),
    ],
)
def test_secrets_come_by_the_names_people_have(variable: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of other programs work, ours win over them, and printing the settings shows neither."""
    monkeypatch.setenv(variable, "postgresql://theirs")
    assert getattr(read(), setting).get_secret_value() == "postgresql://theirs"
    monkeypatch.setenv(f"PERDURE_{setting.upper()}", "postgresql://ours")
    settings = read()
    assert getattr(settings, setting).get_secret_value() == "postgresql://ours"
    assert "postgresql://ours" in settings.secrets()
    assert "//ours" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("OPENAI_BASE_URL", "openai_base_url"),
        ("OPENAI_API_BASE", "openai_base_url"),
        ("ANTHROPIC_BASE_URL", "anthropic_base_url"),
        ("OLLAMA_BASE_URL", "ollama_base_url"),
        ("LMSTUDIO_BASE_URL", "lmstudio_base_url"),
        ("VLLM_API_BASE", "vllm_base_url"),
        ("VLLM_BASE_URL", "vllm_base_url"),
        ("LLAMACPP_BASE_URL", "llamacpp_base_url"),
    ],
)
def test_addresses_come_by_the_names_people_have(
    variable: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of other programs work."""
    monkeypatch.setenv(variable, "http://gpu.lan:8000/v1")
    assert str(getattr(read(), setting)) == "http://gpu.lan:8000/v1"


def test_what_is_no_variable_of_ours_sets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name such as HOST or SERVER_PASSWORD belongs to somebody else; an empty one is not set."""
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("SERVER_PASSWORD", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    found = read()
    assert found.model_dump() == Settings(data_dir=found.data_dir).model_dump()


def test_lists_and_tables_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is separated by commas, a table is JSON."""
    monkeypatch.setenv("PERDURE_EGRESS_ALLOW", "pictures.lan, 10.0.0.0/8")
    monkeypatch.setenv("PERDURE_PROVIDERS", '{"gpu": {"base_url": "http://gpu.lan/v1", "api_key": "sk-very-secret"}}')
    settings = read()
    assert settings.egress_allow == ["pictures.lan", "10.0.0.0/8"]
    assert "sk-very-secret" in settings.secrets()


def test_the_password_of_the_database_counts_as_a_secret() -> None:
    """Drivers put it into their messages without the rest of the URL."""
    assert "hunter2" in Settings(database_url="postgresql://me:hunter2@db/x").secrets()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", r"perdure\.toml: there is no setting 'prot'\. Did you mean 'port'\?"),
        ("zzz = 1", r"there is no setting 'zzz'\. docs/settings\.md lists them all\."),
        ("port = 70000", r"The setting 'port' is wrong: Input should be less than or equal to 65535\."),
        ("port =", r"perdure\.toml cannot be read as TOML: "),
        ('log_level = "loud"', r"The setting 'log_level' is wrong: Input should be 'debug', 'info'"),
        ('[providers.gpu]\nbase_ur = "x"', r"no setting 'providers\.gpu\.base_ur'\. Did you mean 'base_url'\?"),
        ('[providers.gpu]\nbase_url = "ftp://x"', r"The setting 'providers\.gpu\.base_url' is wrong: URL scheme"),
        ('[providers."a/b"]\nbase_url = "http://x"', r"The setting 'providers\.a/b"),
    ],
)
def test_a_slip_in_the_file_is_told(text: str, told: str, nowhere: Path) -> None:
    """The message names the setting and says what would be right."""
    (nowhere / "perdure.toml").write_text(text)
    with pytest.raises(SettingsError, match=told):
        read()


def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error message ends in logs and bug reports."""
    monkeypatch.setenv("PERDURE_PROVIDERS", '{"gpu": {"api_key": "sk-very-secret", "api_kee": "sk-also"}}')
    with pytest.raises(SettingsError) as caught:
        read()
    assert "sk-" not in str(caught.value)
    monkeypatch.setenv("PERDURE_PROVIDERS", '{"gpu": {"api_key": "sk-very-secret"')
    with pytest.raises(SettingsError) as caught:
        read()
    assert "sk-" not in str(caught.value)


def test_a_slip_in_a_variable_is_noticed() -> None:
    """Nothing would happen otherwise, and nobody would know why."""
    assert unknown_variables({"PERDURE_PROT": "1", "PERDURE_PORT": "1", "PERDURE_CONFIG": "x", "PATH": "/"}) == [
        "The environment variable PERDURE_PROT is no setting. Did you mean 'PERDURE_PORT'?"
    ]
