-- Returns a message to its queue if its worker has not renewed it since `renewed_before`. Returns
-- 1, or 0 if the worker has renewed or acknowledged it meanwhile: a check and the move in one step.
local unacked, unacked_index, queue = KEYS[1], KEYS[2], KEYS[3]
local delivery_tag, renewed_before, entry, message = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local renewed_at = redis.call('ZSCORE', unacked_index, delivery_tag)
if not renewed_at or tonumber(renewed_at) > tonumber(renewed_before) then return 0 end
if redis.call('HGET', unacked, delivery_tag) ~= entry then return 0 end
redis.call('ZREM', unacked_index, delivery_tag)
redis.call('HDEL', unacked, delivery_tag)
redis.call('RPUSH', queue, message)
return 1
