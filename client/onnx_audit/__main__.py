"""`python -m onnx_audit`: the command line."""

from onnx_audit.cli import main

main()
