-- Renews the claims that `owner` holds; a `ttl_ms` of 0 releases them.
for _, digest in ipairs(digests) do
  local key = keys.claim_prefix .. digest
  if redis.call('GET', key) == owner then
    if ttl_ms == '0' then redis.call('DEL', key) else redis.call('PEXPIRE', key, ttl_ms) end
  end
end
