-- Changes fields of a run and adds captions, unless the run was cancelled or has expired. Returns 1,
-- or 0 if there is no such run.
if redis.call('EXISTS', run) == 0 then return 0 end
for name, value in pairs(fields) do redis.call('HSET', run, name, value) end
for name, text in pairs(captions) do redis.call('HSET', texts, name, text) end
redis.call('EXPIRE', run, ttl_s)
redis.call('EXPIRE', texts, ttl_s)
return 1
