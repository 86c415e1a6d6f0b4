"""What is measured, one module a figure; each prints JSON. Nothing in here is installed or tested for its speed."""
