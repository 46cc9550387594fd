"""Fleet maintenance: reconciler, webhooks, metrics and doctor."""
