"""What others read of a fleet, and what they send it: models, JSON schemas and TypeScript."""
