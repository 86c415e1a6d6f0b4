"""The schema's history, one step a file; `coordinator.store.schema` runs it."""
