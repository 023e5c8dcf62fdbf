"""How the threads of a product wait for each other."""

import os

OWN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which an environment has settled it for itself."""


def configure() -> None:
    """Let threads sleep while they wait. By default they spin, and where another process is busy too they take the time
    that the thread they wait for needs. Asleep, a small update took two thirds of the time beside a busy process, and
    an eighth more where nothing else ran (dev/LOG.md).

    Must come before torch is loaded, which reads this once. What the environment says goes first.
    """
    if not any(name in os.environ for name in OWN_SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
