"""Job models, job state, the Celery application and the four stages of a job."""
