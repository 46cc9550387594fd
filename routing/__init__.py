"""GPU memory classes, what a job needs, and the queue it goes to. Standard library only."""
