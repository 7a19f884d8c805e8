"""Reports: how they are put together, and what becomes of them."""
