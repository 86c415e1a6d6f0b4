"""Runs, rounds and key epochs as pure values: no gRPC, no storage, no clock, no masks."""
