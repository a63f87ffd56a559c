"""Share: a number with a fraction, dealt out in whole numbers that come to it in the long run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Share:
    """`next` gives whole numbers whose mean is `mean`."""

    mean: float
    dealt: int = 0
    given: int = 0

    def next(self, times: int = 1) -> int:
        """The next one; or the sum of the next so many."""
        self.dealt += times
        before, self.given = self.given, int(self.mean * self.dealt)
        return self.given - before
