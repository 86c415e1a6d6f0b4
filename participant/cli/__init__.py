"""The commands of `accord-participant`, one module each; none is imported before it is asked for."""
