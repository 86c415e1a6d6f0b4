"""Version 1 of the API: code generated from the .proto files beside it (`make protos`)."""
