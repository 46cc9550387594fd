"""The command line, one command a module; imported only when the command runs."""
