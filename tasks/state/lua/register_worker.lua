-- Writes a worker's entry unless another process has its name. Returns the other process's
-- instance, or an empty string if the entry was written.

local ok, entry = pcall(cjson.decode, redis.call('GET', entry_key) or 'null')
if ok and type(entry) == 'table' then
  local other = entry.instance or 'unknown'
  if other ~= instance and other ~= replaces then return other end
end
redis.call('SET', entry_key, info, 'PX', ttl_ms)
redis.call('SADD', workers, worker)
redis.call('PEXPIRE', workers, ttl_ms)
return ''
