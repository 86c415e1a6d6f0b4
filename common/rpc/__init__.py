"""What both ends of a gRPC call share: TLS, channels, identity, errors as status, the server's guard, chunks."""
