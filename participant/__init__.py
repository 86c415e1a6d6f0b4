"""The participant's daemon: trains at home, masks what leaves, and checks all that it is told."""
