"""How the threads of a product wait for each other."""

import os

SETTING, SPINS = "GOMP_SPINCOUNT", "1000"
OWN_SETTINGS = ("OMP_WAIT_POLICY", SETTING, "KMP_BLOCKTIME")
"""Variables by which an environment has settled it for itself."""


def configure() -> None:
    """Let waiting threads spin for some ten microseconds, then sleep.

    By default they spin for milliseconds, and where another process is busy too they take the time that the thread they
    wait for needs: an update took more than twice as long. Asleep at once, they are too slow to wake between the small
    products of a forward: a quarter more on a quiet machine. This costs neither (dev/LOG.md). Torch's builds for
    Linux wait by libgomp, which reads it; other runtimes are left as they are.

    Must come before torch is loaded, which reads this once. What the environment says goes first.
    """
    if not any(name in os.environ for name in OWN_SETTINGS):
        os.environ[SETTING] = SPINS
