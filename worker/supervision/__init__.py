"""Trainer processes: started, watched and ended."""
