"""The HTTP port: metrics, liveness, and the console for people."""

from onnx_audit_server.http.server import HttpServer

__all__ = ["HttpServer"]
