"""What operators see of a server: metrics, probes, logs, traces (docs/operations.md)."""
