"""What backends read and send: documents, JSON schemas and TypeScript."""
