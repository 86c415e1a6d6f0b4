"""Training at a participant: a child process with torch, and the torch-free modules by which the daemon drives it.

The daemon imports `job`, `result`, `process`, `sources` and `templates`; everything else belongs to the child.
"""
