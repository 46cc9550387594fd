"""What the broker keeps of tenants: their queues, quotas, use and webhook secrets."""
