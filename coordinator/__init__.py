"""The coordinator: runs rounds, keeps state, opens sums of masked updates; sees no single one, never imports torch."""
