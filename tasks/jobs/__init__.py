"""What a job is: pydantic models only, no Celery and no torch."""
