"""What the settings of every process have in common: the prefix, the home folder, the way an error reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

Settings = TypeVar("Settings", bound=BaseSettings)


class SettingsError(Exception):
    """The environment is wrong; the message names each variable and says why."""


class CommonSettings(BaseSettings):
    """Variables that every process reads. All are named `IGEN_` plus the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="IGEN_", extra="ignore", frozen=True)

    home: Path = Field(Path("var"), description="Folder of all state: database, pictures, keys, logs, Redis.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object a line, or for people.")
    bind: str = Field("127.0.0.1", description="Address that the servers listen on.")
    fetch_allow_hosts: str = Field(
        "",
        description="Private hosts that caller-supplied addresses may name, comma-separated: `host` allows ports "
        "80 and 443, `host:port` exactly that port.",
    )


def load_settings(kind: type[Settings]) -> Settings:
    """Read one process's settings from the environment.

    Raises:
        SettingsError: naming each wrong variable, its reason, and never its value (it may be a secret).

    """
    try:
        return kind()
    except SourceError as problem:  # a list or mapping that is not JSON; the text names the field alone
        raise SettingsError(str(problem)) from None
    except ValidationError as problem:
        lines = [
            f"{'IGEN_' + '.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
            for item in problem.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise SettingsError("\n".join(lines)) from None
