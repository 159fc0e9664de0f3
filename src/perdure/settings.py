"""Settings: one TOML file, the environment, and the flags of the command line, read once and typed.

A flag wins over the environment, the environment over the file, the file over the default. `docs/settings.md` has a
line for each, and a test sees to that. Only `main`, `doctor` and `testing` know this module: everything below is given
what it needs.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyHttpUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from perdure.domain.errors import Invalid, PerdureError
from perdure.runs.signing import key_of

PREFIX = "PERDURE_"
FILE = "perdure.toml"
FOREIGN = ("PERDURE_CONFIG", "PERDURE_SHARED")
"""Variables that begin as ours do and are no settings: where the file is, and where developers keep the spec."""


class SettingsError(PerdureError):
    """A setting is missing, misspelt or out of range; the text names it and says what would be right."""


def _words(value: object) -> object:
    """`a, b` as a list, the form a list has in an environment variable."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _signs(secret: SecretStr) -> SecretStr:
    """A secret that callbacks can be signed with."""
    try:
        key_of(secret.get_secret_value())
    except Invalid as error:
        raise ValueError(str(error)) from None
    return secret


def _name(*variables: str, default: Any = None, description: str, **bounds: Any) -> Any:
    """A field that other programs' environment variables set as well, our own first."""
    return Field(default, validation_alias=AliasChoices(*variables), description=description, **bounds)


SigningSecret = Annotated[SecretStr, AfterValidator(_signs)]
Words = Annotated[list[str], NoDecode, BeforeValidator(_words)]
ProviderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class ProviderSettings(BaseModel):
    """One entry of the table `providers`: any server that speaks OpenAI's Chat Completions."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base_url: AnyHttpUrl = Field(description="Where its API begins; `/v1` is added to a bare host.")
    api_key: SecretStr | None = Field(None, description="Sent as a bearer token.")


class Settings(BaseModel):
    """Everything that can be set. Made directly it looks at no file and no environment; `read` does."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)

    data_dir: Path = Field(Path("~/.perdure"), description="Where the database and its backups are kept.")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8283, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    server_password: SecretStr | None = _name(
        "PERDURE_SERVER_PASSWORD", "LETTA_SERVER_PASSWORD",
        description="Required of every request, as a bearer token, when set.",
    )  # fmt: skip
    database_url: SecretStr | None = _name(
        "PERDURE_DATABASE_URL", "LETTA_PG_URI",
        description="`sqlite:////path/file.db` or `postgresql://…`; without it, `perdure.db` in the data directory.",
    )  # fmt: skip
    sqlite_synchronous: Literal["FULL", "NORMAL", "EXTRA"] = Field(
        "FULL", description="SQLite's setting; with NORMAL a power failure can take the last acknowledged messages."
    )
    postgres_pool_size: int = Field(8, ge=1, le=200, description="Connections to PostgreSQL.")
    max_body_bytes: int = Field(32 * 2**20, ge=2**10, description="Largest request body.")
    ping_seconds: float = Field(
        20, gt=0, le=3600, description="How long a stream may be silent before a ping says that it lives."
    )
    stream_retention_hours: float = Field(
        3, gt=0, le=24 * 365, description="How long after its end a background run's stream can be read again."
    )
    drain_seconds: float = Field(10, ge=0, le=600, description="How long runs may finish when the server is stopped.")

    openai_api_key: SecretStr | None = _name(
        "PERDURE_OPENAI_API_KEY", "OPENAI_API_KEY", description="Makes OpenAI's models available as `openai/…`."
    )
    openai_base_url: AnyHttpUrl | None = _name(
        "PERDURE_OPENAI_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE",
        description="Another server in OpenAI's place.",
    )  # fmt: skip
    anthropic_api_key: SecretStr | None = _name(
        "PERDURE_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY",
        description="Accepted; Anthropic's dialect comes in a later version.",
    )  # fmt: skip
    anthropic_base_url: AnyHttpUrl | None = _name(
        "PERDURE_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL",
        description="Accepted; Anthropic's dialect comes in a later version.",
    )  # fmt: skip
    openrouter_api_key: SecretStr | None = _name(
        "PERDURE_OPENROUTER_API_KEY", "OPENROUTER_API_KEY", description="Makes models available as `openrouter/…`."
    )
    ollama_base_url: AnyHttpUrl | None = _name(
        "PERDURE_OLLAMA_BASE_URL", "OLLAMA_BASE_URL", description="An Ollama elsewhere than on its usual loopback port."
    )
    lmstudio_base_url: AnyHttpUrl | None = _name(
        "PERDURE_LMSTUDIO_BASE_URL", "LMSTUDIO_BASE_URL", description="An LM Studio server elsewhere, likewise."
    )
    vllm_base_url: AnyHttpUrl | None = _name(
        "PERDURE_VLLM_BASE_URL", "VLLM_BASE_URL", "VLLM_API_BASE", description="A vLLM server elsewhere, likewise."
    )
    llamacpp_base_url: AnyHttpUrl | None = _name(
        "PERDURE_LLAMACPP_BASE_URL", "LLAMACPP_BASE_URL", description="A llama.cpp server elsewhere, likewise."
    )
    providers: dict[ProviderName, ProviderSettings] = Field(
        {}, description="More servers that speak OpenAI's dialect, by name."
    )
    discover: bool = Field(True, description="Look for local model servers on their usual loopback ports.")
    demo: bool = Field(True, description="Offer the embedded demo model `demo/demo`.")
    model_timeout_seconds: float = Field(600, gt=0, description="Longest silence of a model before it counts as lost.")
    allowed_hosts: Words = Field(
        [], description="Names, besides those of loopback, that clients reach a server without a password by."
    )
    egress_allow: Words = Field(
        [], description="Private hosts, addresses or CIDR ranges that image URLs and callbacks may lead to."
    )
    callback_secret: SigningSecret | None = Field(
        None, description="Signs callbacks; without it, a secret is made once and kept in the data directory."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="`auto`: text on a terminal, JSON lines otherwise."
    )

    @property
    def home(self) -> Path:
        """The data directory, absolute."""
        return self.data_dir.expanduser().absolute()

    @property
    def database(self) -> str:
        """The database URL in force, with its password."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'perdure.db'}"

    @property
    def password(self) -> str | None:
        """The server's password."""
        return None if self.server_password is None else self.server_password.get_secret_value()

    def secrets(self) -> list[str]:
        """Every secret text in force, so that logs can leave them out."""
        values = [getattr(self, name) for name in type(self).model_fields]
        values += [provider.api_key for provider in self.providers.values()]
        texts = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        return [*texts, *filter(None, [password_in(self.database)])]


class _Sources(Settings, BaseSettings):
    """Settings as they are found: flags and file are given, the environment is looked up."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, validate_default=False)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Flags first, then the environment, then what the file says, which `read` passes along as `_file`."""
        assert isinstance(init_settings, InitSettingsSource)
        flags = dict(init_settings.init_kwargs)
        file = flags.pop("_file")
        return InitSettingsSource(cls, flags), env_settings, InitSettingsSource(cls, file)


def read(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings in force. `flags` are those given on the command line; None values count as not given.

    Raises SettingsError.
    """
    given: dict[str, Any] = {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        file = find_file(given)
        given["_file"] = read_file(file) if file else {}
        return _Sources(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(_told(problem) for problem in error.errors(include_url=False))) from None
    except ValueError as error:  # pydantic-settings: a variable that must hold JSON and does not
        raise SettingsError(f"{error}. docs/settings.md has the form of each setting.") from None


def find_file(flags: Mapping[str, Any]) -> Path | None:
    """The file in force: `PERDURE_CONFIG`, else `perdure.toml` here, else in the data directory."""
    named = os.environ.get("PERDURE_CONFIG")
    if named:
        if not Path(named).is_file():
            raise SettingsError(f"PERDURE_CONFIG names {named}, which is no file. Correct it, or unset it.")
        return Path(named)
    home = flags.get("data_dir") or os.environ.get("PERDURE_DATA_DIR") or Settings.model_fields["data_dir"].default
    return next((path for path in (Path(FILE), Path(home).expanduser() / FILE) if path.is_file()), None)


def read_file(path: Path) -> dict[str, Any]:
    """What a settings file says. Raises SettingsError for a file that is no TOML or has an unknown key."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read as TOML: {error}.") from None
    for key in found:
        if key not in Settings.model_fields:
            raise SettingsError(f"{path}: there is no setting {key!r}.{_nearest(key, Settings.model_fields)}")
    return found


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each environment variable that looks like one of ours and is none: probably a slip."""
    names = [PREFIX + name.upper() for name in Settings.model_fields]
    odd = [name for name in environ if name.startswith(PREFIX) and name not in names and name not in FOREIGN]
    return [f"The environment variable {name} is no setting.{_nearest(name, names)}" for name in sorted(odd)]


def variables_of(name: str) -> list[str]:
    """The environment variables that set a setting, the first one winning."""
    alias = Settings.model_fields[name].validation_alias
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [PREFIX + name.upper()]


def password_in(url: str) -> str | None:
    """The password inside a database URL."""
    try:
        return urlsplit(url).password
    except ValueError:  # the store will say what is wrong with it
        return None


def _told(problem: Any) -> str:
    """One of pydantic's findings as a sentence, without the value: it may be a secret."""
    where = ".".join(str(part) for part in problem["loc"])
    name = where.removeprefix(PREFIX).lower() if where.startswith(PREFIX) else where
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        return f"There is no setting {name!r}.{_nearest(key, ProviderSettings.model_fields)}"
    return f"The setting {name!r} is wrong: {problem['msg']}."


def _nearest(key: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else " docs/settings.md lists them all."
