"""What commands print: tables, reports and the progress of jobs."""
