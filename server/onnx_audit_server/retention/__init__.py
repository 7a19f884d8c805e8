"""What expires, and how it is removed without harm to what is in use."""
