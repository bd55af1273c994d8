"""Things to try; `make demo` runs `examples.demo`."""
