"""Jobs: submission, records, events, files, and what callers may do with them."""
