"""What a launcher, such as torchrun or accelerate, has said in the environment. No torch here."""

import os

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_met: list[int] = []


def size() -> int:
    """How many processes were started, this one among them."""
    return _met[0] if _met else int(os.environ.get("WORLD_SIZE") or 1)


def place_on_machine() -> int:
    """Number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def forget() -> None:
    """Take the variables away once they are read: libraries that look at them would take part in this on their own."""
    _met[:] = [size()]
    for name in [*VARIABLES, *(name for name in os.environ if name.startswith("TORCHELASTIC_"))]:
        os.environ.pop(name, None)
