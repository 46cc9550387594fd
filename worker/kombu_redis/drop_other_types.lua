-- Deletes the keys that are not lists, so that senders and workers can use them again. Returns, for
-- each, its index and its type.
local dropped = {}
for index, key in ipairs(KEYS) do
  local key_type = redis.call('TYPE', key).ok
  if key_type ~= 'list' and key_type ~= 'none' then
    redis.call('DEL', key)
    table.insert(dropped, index)
    table.insert(dropped, key_type)
  end
end
return dropped
