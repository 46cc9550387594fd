-- Removes the entries of a pack from the index. Entries that have moved to another pack stay.
for _, digest in ipairs(digests) do
  if redis.call('HGET', entries, digest) == pack then redis.call('HDEL', entries, digest) end
end
