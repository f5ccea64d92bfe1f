"""gRPC: `loragate.v1` over `grpc.aio`, the same gateway and administration as HTTP."""
