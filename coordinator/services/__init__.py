"""One thin servicer per proto service, the listeners that serve them, and the client that command lines use."""
