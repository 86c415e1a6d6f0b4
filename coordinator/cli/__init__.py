"""The commands of `accord-coordinator`, one module each; none is imported before it is asked for."""
