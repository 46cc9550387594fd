-- Takes a token from a bucket that fills up in period_s. Returns '1' or '0' (no token left), and the
-- tokens that remain.
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local full = tonumber(capacity)
local bucket = redis.call('HMGET', bucket_key, 'tokens', 'updated_at')
local tokens = tonumber(bucket[1]) or full
local idle_s = math.max(0, now - (tonumber(bucket[2]) or now))
tokens = math.min(full, tokens + idle_s * full / tonumber(period_s))
local taken = tokens >= 1 and 1 or 0
tokens = string.format('%.6f', tokens - taken)
redis.call('HSET', bucket_key, 'tokens', tokens, 'updated_at', string.format('%.6f', now))
-- By then it is full, as a new one is.
redis.call('EXPIRE', bucket_key, period_s)
return {tostring(taken), tokens}
