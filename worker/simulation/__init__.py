"""A discrete-event simulation of a fleet."""
