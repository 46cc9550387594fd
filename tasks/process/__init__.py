"""What each process of the fleet sets up for itself: signals, logs, file modes."""
