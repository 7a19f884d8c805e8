"""Signed statements that a model was audited, and their verification; needs the extra `attest`."""
