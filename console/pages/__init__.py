"""The pages of the console: what people see, over the service."""
