"""What private training buys, and what its absence costs: canaries and membership inference on a trained adapter."""
