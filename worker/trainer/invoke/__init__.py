"""The engine ``invoke-training``: the library, driven through its seams, in its own Python."""
