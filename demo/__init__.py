"""A whole federation on one machine: real processes, real model, real records of three organisations."""
