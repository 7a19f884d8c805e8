"""The service: API, durable jobs, storage, reports."""
