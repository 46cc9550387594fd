-- Adds a secret. Returns 1, or 0 if the tenant has as many as it may.
if redis.call('HLEN', secrets_key) >= tonumber(maximum) then return 0 end
redis.call('HSET', secrets_key, secret_id, secret)
return 1
