"""Between protobuf and the engine: what is allowed in, and how answers are written."""
