"""The table `backend_options` of `vllm-server`. Needs neither torch nor vLLM."""

from typing import Annotated

from pydantic import Field, field_validator

from ttrl_pop.config import Section


class VllmServerOptions(Section):
    """The table `backend_options` of `vllm-server`."""

    urls: tuple[str, ...] = ()
    """Addresses of the servers, as `http://host:8000`; each takes what the others leave."""
    folder: str | None = None
    """Folder that the learner writes its policy to and the servers read it from, under the same path; for each run that
    goes on at the same time another one."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Seconds after which a server that has not answered a request counts as dead."""

    @field_validator("urls")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")) or not url.partition("://")[2].strip("/"):
                raise ValueError(f"a server is named by its address, as http://host:8000, got {url!r}")
        if len({url.rstrip("/") for url in value}) != len(value):
            raise ValueError("each server is named once")
        return tuple(url.rstrip("/") for url in value)
