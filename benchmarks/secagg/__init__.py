"""What masking costs, participant and coordinator: `python -m benchmarks.secagg`."""
