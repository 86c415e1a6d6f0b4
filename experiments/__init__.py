"""make experiment: whether organisations that tune together beat each of them alone, measured on real data."""
