"""The way to the coordinator: proxy or not, what is dialled, and what stands in the way."""
