-- Deletes a worker's entry if it is this process's.

local ok, entry = pcall(cjson.decode, redis.call('GET', entry_key) or 'null')
if ok and type(entry) == 'table' and (entry.instance or 'unknown') == instance then
  redis.call('DEL', entry_key)
end
