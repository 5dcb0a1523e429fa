"""Transport, conversion and the status table: everything that knows gRPC."""
