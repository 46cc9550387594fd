-- Returns the fleet's secret of links, the candidate unless there is one, and the time. The secret
-- lives for ttl_s after the last link was made.
redis.call('SET', secret_key, candidate, 'NX')
redis.call('EXPIRE', secret_key, ttl_s)
return {redis.call('GET', secret_key), redis.call('TIME')[1]}
