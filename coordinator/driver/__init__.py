"""Drives runs: takes each through its rounds and key epochs, one durable step at a time.

`loop` wakes up, holds the leases and calls the steps; `runs`, `epochs`, `rounds` and `aggregating` are the steps, and
`work` is what they all need. State is only in the store, so a step that a kill cut short is simply taken again.
"""

from coordinator.driver.loop import Driver

__all__ = ["Driver"]
