"""The cache of encoder outputs: keys, packs, index and eviction."""
