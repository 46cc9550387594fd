-- Writes a key that expires after a second. Returns 1.
redis.call('SET', probe_key, '', 'PX', 1000)
return 1
