"""The engine ``invoke-training``: the library in its own Python, its functions partly replaced."""
