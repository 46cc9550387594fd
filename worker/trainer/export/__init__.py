"""File formats that every model family writes."""
