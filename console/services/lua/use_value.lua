-- Returns a value, which is its account's most recently used one then; nothing for an unknown id.
local value = redis.call('GET', value_key)
if value then
  local now = redis.call('TIME')
  local score = now[1] .. '.' .. string.format('%06d', now[2])
  redis.call('ZADD', index_prefix .. cjson.decode(value).account, 'XX', score, value_id)
end
return value
