"""The coordinator: runs rounds, keeps state, combines masked updates; never sees one of them open, never imports torch."""
