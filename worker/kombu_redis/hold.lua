-- Records a delivered message and its lease, which begins at the broker's time: workers' clocks may
-- be wrong.
local unacked, unacked_index = KEYS[1], KEYS[2]
local delivery_tag, entry = ARGV[1], ARGV[2]

local time = redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
redis.call('ZADD', unacked_index, now, delivery_tag)
redis.call('HSET', unacked, delivery_tag, entry)
