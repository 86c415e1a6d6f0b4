"""What the benchmarks start in processes of their own, some of them in a Python of a peer's."""
