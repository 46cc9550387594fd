-- Adds an entry to the capped list of unreadable messages. Returns 1, or 0 if the message is not
-- where it was found any more: in a list (one more key; `place` is its position) or among the
-- unacknowledged messages (two more keys; `place` is its tag).
local unreadable = KEYS[1]
local entry, max_entries, ttl_s, place, size, beginning = unpack(ARGV)

local function is_same(message)
  return message and #message == tonumber(size) and string.sub(message, 1, #beginning) == beginning
end

if #KEYS == 2 then
  if not is_same(redis.call('LINDEX', KEYS[2], place)) then return 0 end
  local mark = 'set aside by ' .. unreadable
  redis.call('LSET', KEYS[2], place, mark)
  redis.call('LREM', KEYS[2], 1, mark)
elseif #KEYS == 3 then
  if not is_same(redis.call('HGET', KEYS[2], place)) then return 0 end
  redis.call('HDEL', KEYS[2], place)
  redis.call('ZREM', KEYS[3], place)
end

local time = redis.call('TIME')
local set_aside_at = string.format('"set_aside_at": %d.%06d', time[1], time[2])
redis.call('LPUSH', unreadable, string.sub(entry, 1, -2) .. ', ' .. set_aside_at .. '}')
redis.call('LTRIM', unreadable, 0, max_entries - 1)
redis.call('EXPIRE', unreadable, ttl_s)
return 1
