"""What was typed for the configuration: a preset, files, flags that have a key, and --set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttrl_pop.errors import UsageError

if TYPE_CHECKING:
    # Not before a command runs: --help answers at once.
    import ttrl_pop.config
    import ttrl_pop.config_file


@dataclass(frozen=True, slots=True)
class Given:
    """The sources of a command's configuration, unread: defaults < --preset < --config < flags < --set."""

    preset: str | None = None
    files: Sequence[Path] = ()
    """Each --config; a later one wins over those before it."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Values of flags by dotted key; None means not given."""
    settings: Sequence[str] = ()
    """`KEY=VALUE` texts of --set."""
    trust: bool = False
    """Whether --trust was given: code, addresses and folders that a run's own files name may be used."""

    def values(self) -> dict[str, Any]:
        """What was typed, by dotted key; None means not given.

        Raises:
            UsageError: a text of --set is no KEY=VALUE.
        """
        from ttrl_pop.config_file import leaves, parse_assignment

        typed = dict(leaf for text in self.settings for leaf in leaves(*parse_assignment(text)))
        return {**self.overrides, **typed}

    def config(self, file: Path | None = None, text: str | None = None) -> "ttrl_pop.config.Config":
        """The configuration that they make.

        Args:
            file: stands in the place of --preset and --config, such as a run's own.
            text: what is in `file`, where it has been read.

        Raises:
            UsageError: a file or a value that is no configuration.
        """
        from ttrl_pop.config_file import layered, read_layer

        return layered(self.layers() if file is None else [read_layer(file, text)], self.values())

    def layers(self) -> "list[ttrl_pop.config_file.Layer]":
        """The preset and the files, read.

        Raises:
            UsageError: one of them is no TOML.
        """
        from ttrl_pop.config_file import parse_layer, read_layer
        from ttrl_pop.presets import preset

        presets = [] if self.preset is None else [parse_layer(preset(self.preset), f"preset {self.preset}")]
        return [*presets, *map(read_layer, self.files)]

    def check_nothing_beside(self, flag: str) -> None:
        """Let a run's own configuration be the only one.

        Args:
            flag: what leads to the run, as in `--resume`.

        Raises:
            UsageError: --preset or --config was given as well.
        """
        for name, given in (("--preset", self.preset), ("--config", self.files)):
            if given:
                raise UsageError(
                    f"{flag} takes its configuration from the run directory; leave {name} out, and use --set for "
                    "single values"
                )
