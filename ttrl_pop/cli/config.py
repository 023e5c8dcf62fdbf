"""`ttrl-pop config`: every setting as commented TOML, or a JSON schema of it (no torch)."""

import json
import sys
from typing import Any, cast

from ttrl_pop.cli.given import Given
from ttrl_pop.config import Config, Section
from ttrl_pop.config_file import validate
from ttrl_pop.plugins import options_of
from ttrl_pop.settings import commented_toml, json_schema
from ttrl_pop.vote.rewards.base import needs_gold
from ttrl_pop.vote.rules import build_rules


def config(given: Given, schema: bool) -> None:
    """Print the configuration that was given, with all that could be set, or a schema of any.

    Raises:
        UsageError: what was given is no configuration.
    """
    made = given.config()
    _check(made)
    # As TOML and JSON are, whatever the terminal's is.
    cast(Any, sys.stdout).reconfigure(encoding="utf-8")
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False) if schema else commented_toml(made), end="")
    if schema:
        print()


def _check(config: Config) -> None:
    """Refuse what a run would refuse of plug-ins and their options.

    Raises:
        UsageError: a name stands for nothing, or an option is none.
    """
    # Whether there are gold answers only a run knows.
    build_rules(config.vote, rewards=not needs_gold(config.vote.reward))
    name = config.population.name
    validate(options_of("population", name) or Section, config.population.options, source="population.options")
    if config.backend != "auto":
        kind = options_of("backend", config.backend) or Section
        validate(kind, config.backend_options, source="backend_options")
