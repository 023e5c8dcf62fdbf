"""The table `backend_options` of `vllm-server`. Needs neither torch nor vLLM."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ttrl_pop.config import Section


class VllmServerOptions(Section):
    """The table `backend_options` of `vllm-server`."""

    urls: tuple[str, ...] = ()
    """Addresses of the servers, as `http://host:8000`; each takes what the others leave."""
    folder: str | None = None
    """Folder that the learner writes its policy to and the servers read it from, under the same path."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Seconds after which a server that has not answered a request counts as dead."""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not _is_address(url):
                raise ValueError(f"a server is named by its address, as http://host:8000, got {url!r}")
        if len({url.rstrip("/") for url in value}) != len(value):
            raise ValueError("each server is named once")
        return tuple(url.rstrip("/") for url in value)


def _is_address(url: str) -> bool:
    """Whether a server can be asked at `url`."""
    try:
        parts = urlsplit(url)
        # A port that is none is an error once it is looked at.
        named = bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        return named and parts.scheme in ("http", "https")
    except ValueError:
        return False
