"""What was typed for the configuration: a file, flags that have a key, and --set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Not before a command runs: --help answers at once.
    import ttrl_pop.config


@dataclass(frozen=True, slots=True)
class Given:
    """The sources of a command's configuration, unread: defaults < --config < flags < --set."""

    config_file: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of flags by dotted key; None means not given."""
    settings: Sequence[str] = ()
    """`KEY=VALUE` texts of --set."""
    trust: bool = False
    """Whether --trust was given: code that a run's own files name may be imported."""

    def values(self) -> dict[str, Any]:
        """What was typed, by dotted key; None means not given.

        Raises:
            UsageError: a text of --set is no KEY=VALUE.
        """
        from ttrl_pop.config_file import parse_assignment

        return {**self.overrides, **dict(parse_assignment(text) for text in self.settings)}

    def config(self, file: Path | None = None, text: str | None = None) -> "ttrl_pop.config.Config":
        """The configuration that they make.

        Args:
            file: stands in the place of --config, such as a run's own.
            text: what is in `file`, where it has been read.

        Raises:
            UsageError: a file or a value that is no configuration.
        """
        from ttrl_pop.config_file import load_config

        file = file or self.config_file
        values = self.values()
        population, backend = values.get("population.name"), values.get("backend")
        if file is not None and (population is not None or backend is not None):
            # The options in the file belong to the population and to the backend that it names.
            named = load_config(file, {}, text)
            if population not in (None, named.population.name):
                values = {"population.options": {}, **values}
            if backend not in (None, named.backend) and named.backend != "auto":
                values = {"backend_options": {}, **values}
        return load_config(file, values, text)
