"""Rules for Prometheus, as typed tables, and the files and documents made from them."""
