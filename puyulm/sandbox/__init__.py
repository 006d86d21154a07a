"""Runs code that a model wrote: in namespaces of its own, without network, under limits. Linux with bubblewrap."""

from puyulm.sandbox.limits import Limits
from puyulm.sandbox.room import check
from puyulm.sandbox.run import Outcome, Program, run_many, run_python
from puyulm.sandbox.session import Cell, Session

__all__ = ["Cell", "Limits", "Outcome", "Program", "Session", "check", "run_many", "run_python"]
