"""Generated stubs of the gRPC contract; `make proto` writes them, nobody edits them."""
