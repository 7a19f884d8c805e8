"""What the service remembers: blobs by digest, and records of models, probe sets and audits."""
