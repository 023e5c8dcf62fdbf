"""`ttrl-pop config`: every setting as commented TOML, or a JSON schema of it (no torch)."""

import json

from ttrl_pop.cli.given import Given
from ttrl_pop.settings import commented_toml, json_schema


def config(given: Given, schema: bool) -> None:
    """Print the configuration that was given, with all that could be set, or a schema of any.

    Raises:
        UsageError: what was given is no configuration.
    """
    made = given.config()
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False) if schema else commented_toml(made), end="")
    if schema:
        print()
