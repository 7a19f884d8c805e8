"""What a process gives up before it touches an untrusted model; see docs/sandbox.md."""
