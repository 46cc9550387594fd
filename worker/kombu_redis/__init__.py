"""kombu's Redis transport with leases and redelivery. Imports nothing of this project."""
