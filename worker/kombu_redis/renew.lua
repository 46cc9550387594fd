-- Renews leases at the broker's time. Returns the delivery tags that are still leased: a message
-- that was acknowledged meanwhile must not return.
local unacked_index = KEYS[1]

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
local held = {}
for _, delivery_tag in ipairs(ARGV) do
  if redis.call('ZSCORE', unacked_index, delivery_tag) then
    redis.call('ZADD', unacked_index, now, delivery_tag)
    table.insert(held, delivery_tag)
  end
end
return held
