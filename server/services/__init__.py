"""The gRPC services. Each method reads its request, asks the engine and writes its reply, naming what answered."""
