-- Stores a value of an account for ttl_s, and removes the account's least recently used values beyond
-- max_each. Returns their ids. The score of an id in the index is the time of its last use.
local now = redis.call('TIME')
redis.call('SET', value_key, value, 'EX', ttl_s)
redis.call('ZADD', index_key, now[1] .. '.' .. string.format('%06d', now[2]), value_id)
redis.call('EXPIRE', index_key, ttl_s)
local removed = {}
local surplus = redis.call('ZCARD', index_key) - tonumber(max_each)
if surplus > 0 then
  removed = redis.call('ZRANGE', index_key, 0, surplus - 1)
  for _, oldest in ipairs(removed) do
    redis.call('ZREM', index_key, oldest)
    redis.call('DEL', value_prefix .. oldest)
  end
end
return removed
