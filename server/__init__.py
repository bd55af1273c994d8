"""The service: wire -> embed queue / search -> reply."""
