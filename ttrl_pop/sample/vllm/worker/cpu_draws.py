"""Seeded draws on a CPU while a prompt is read in parts.

vLLM's first runner draws a token for every row of a batch and takes the draw back where the row's prompt has not been
read to its end. It does so by the offset of the request's generator, which a generator on a CPU does not have:
vLLM 0.32 stops there with an error. Here such a generator remembers its state instead.
"""

from typing import Any

import numpy as np
import torch


class Rewinding(torch.Generator):
    """A generator that goes back to where it stood at `note` when its offset is set."""

    def note(self) -> None:
        """Remember the state to go back to."""
        self._noted = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        return self.set_state(self._noted)


def make_rewindable(runner: Any) -> None:
    """Prepare the generators of the rows whose draw will be taken back, of a batch that is laid out."""
    batch = runner.input_batch
    for row in np.nonzero(runner.discard_request_mask.np[: batch.num_reqs])[0].tolist():
        drawn = batch.generators.get(row)
        if drawn is not None:
            again = Rewinding()
            again.set_state(drawn.get_state())
            again.note()
            batch.generators[row] = runner.requests[batch.req_ids[row]].generator = again
