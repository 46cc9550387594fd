"""The pages of the web console: what people see, over the service."""
