"""What pages and API share: jobs, uploads, dataset checks, sessions."""
