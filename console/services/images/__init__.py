"""Images, captions and datasets: uploads, checks, and what is kept of them."""
