"""Golden traces: one adapter an area turns a case into a run and says what to compare.

A case is passed, failed, or skipped with a reason from a fixed list; a field that an adapter does not know is a
failure, so that nothing in a case is silently ignored.
"""

from dlmbench.verify.cases import Outcome, run_folder

__all__ = ["Outcome", "run_folder"]
