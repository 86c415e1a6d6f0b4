"""Where the coordinator's state lives: rows behind `interface.Store`, bytes behind `blobs.BlobStore`."""
