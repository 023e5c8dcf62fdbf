"""What a grader is: a canonical key for every answer, and a slower test for answers whose keys differ."""

from abc import ABC, abstractmethod
from collections.abc import Iterable


class Grader(ABC):
    """Decides when two answers are equal. A subclass must give `key`; it may give `equal`.

    The key makes clustering a matter of hashing, so that the order of answers cannot matter. `equal` is for
    what no key can decide (say, symbolic equality); it need be neither symmetric nor transitive.

    Votes are cast in a thread of their own while the main one compares with gold answers: a grader that keeps something
    must guard it.
    """

    timeouts: int = 0
    """Questions of the calling thread so far that got no verdict in time, and count as "not equal". By thread, as what
    is compared with gold meanwhile is none of the vote's."""

    notices: tuple[str, ...] = ()
    """What a user should know of how answers are compared on this machine."""

    @abstractmethod
    def key(self, answer: str) -> str:
        """Canonical key: equal keys say equal answers. An empty key says that nothing is answered (`$$`)."""

    def equal(self, a: str, b: str) -> bool:
        """Whether answers with different keys are equal all the same. Asked both ways; both must hold."""
        return False

    def doubt(self, answers: Iterable[str | None]) -> str | None:
        """What to tell of a vote on these answers that was decided by a rule of reading on which people differ, such as
        whether `1,234` is one thousand or one; None where none was.
        """
        return None

    def forget(self) -> None:  # noqa: B027 (a grader that remembers nothing has nothing to forget)
        """Drop verdicts that depend on what the calling thread asked before, such as an answer that was given up on.

        Called at the start of each step, before each vote, and before labels are compared with earlier ones: a resumed
        run then learns and reports the same as one that was never stopped, whatever was asked for gold answers.
        """

    def same(self, a: str | None, b: str | None) -> bool:
        """The verdict on two answers: keys equal, or `equal` both ways. No answer never equals anything."""
        if a is None or b is None:
            return False
        key_a, key_b = self.key(a), self.key(b)
        if not key_a or not key_b:
            return False
        return key_a == key_b or (self.equal(a, b) and self.equal(b, a))
