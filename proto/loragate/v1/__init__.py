"""The public gRPC contract: `inference.proto` for tenants, `registry.proto` for operators.

Each `*.proto` has its generated modules beside it (`*_pb2.py`, its types in `*_pb2.pyi`, clients
and servicers in `*_pb2_grpc.py`). They are the generator's untouched output; regenerate all with

    python -m grpc_tools.protoc --proto_path=proto \\
        --python_out=proto --pyi_out=proto --grpc_python_out=proto \\
        loragate/v1/inference.proto loragate/v1/registry.proto
"""
