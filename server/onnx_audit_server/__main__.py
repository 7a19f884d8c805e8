"""`python -m onnx_audit_server serve`: the service without the client's command line."""

from onnx_audit_server.main import main

main(prog_name="onnx-audit")
